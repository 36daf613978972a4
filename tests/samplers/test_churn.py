"""Euler and Heun with churn against the formulas of the paper, in its variables x / alpha and sigma / alpha."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from diffusion_lab.samplers import Churn, Euler, Heun, ListedTimes, NoClipping
from support.every_sampler import Spy
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise, walk

LEVELS = [40.0, 11.0, 3.0, 0.8, 0.2, 0.05]  # below sigma_max of both schedules, so that all can be raised
SCHEDULES: dict[str, tuple[NoiseSchedule, Callable[[float], float]]] = {
    "edm": (EDMSchedule(), lambda level: level),
    "rectified_flow": (RectifiedFlowSchedule(), lambda level: level / (1 + level)),
}
every_schedule = pytest.mark.parametrize(("schedule", "time_at"), SCHEDULES.values(), ids=SCHEDULES.keys())
churns = pytest.mark.parametrize(
    "churn", [Churn(), Churn(1.0, noise_scale=1.007), Churn(40.0, 0.1, 20.0, 1.003)], ids=["none", "little", "bounded"]
)


def algorithm_2(
    process: GaussianProcess, time_at: Callable[[float], float], churn: Churn, draws: list[Tensor], *, second: bool
) -> list[Tensor]:
    """Return the x_i of Karras et al. (2022), algorithm 2, times alpha.  second: with the second-order correction."""
    oracle, visited, remaining = MixtureOracle(process), [], iter(draws)

    def time(level: float) -> Tensor:
        return torch.tensor(time_at(level), dtype=torch.float64)

    def alpha(level: float) -> float:
        return float(process.schedule.coefficients(time(level))[0])

    def slope(x: Tensor, level: float) -> Tensor:
        return (x - oracle(alpha(level) * x, time(level).expand(len(x)), Condition()).x_0) / level

    x = next(remaining) * LEVELS[0]
    for level, after in zip(LEVELS, [*LEVELS[1:], 0.0], strict=True):
        active = churn.sigma_min <= level <= churn.sigma_max
        gamma = min(churn.amount / len(LEVELS), math.sqrt(2) - 1) if active else 0.0
        raised = level + gamma * level
        if gamma > 0:
            x = x + math.sqrt(raised**2 - level**2) * churn.noise_scale * next(remaining)
        d = slope(x, raised)
        x_next = x + (after - raised) * d
        if after > 0 and second:
            x_next = x + (after - raised) * (d / 2 + slope(x_next, after) / 2)
        x = x_next
        visited.append(alpha(after) * x)
    assert not list(remaining)
    return visited


@every_schedule
@churns
@pytest.mark.parametrize("build", [Euler, Heun])
def test_each_step_is_algorithm_2_of_karras_et_al(
    build: type[Euler] | type[Heun], churn: Churn, schedule: NoiseSchedule, time_at: Callable[[float], float]
) -> None:
    process, noise = GaussianProcess(schedule), RecordedNoise((5, 3, 8, 6))
    grid = ListedTimes([time_at(level) for level in LEVELS])
    sampler = build(process, num_steps=6, churn=churn, time_grid=grid, clipping=NoClipping())
    visited, _ = walk(sampler, MixtureOracle(process), noise)
    expected = algorithm_2(process, time_at, churn, noise.drawn, second=build is Heun)
    torch.testing.assert_close(visited, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("churn", "num_draws"),
    [(Churn(), 1), (Churn(0.6), 7), (Churn(0.6, 0.2, 11.0), 5), (Churn(0.6, sigma_max=39.9), 6), (Churn(0.6, 41), 1)],
    ids=str,
)
def test_noise_is_added_at_the_levels_from_sigma_min_to_sigma_max(churn: Churn, num_draws: int) -> None:
    process, noise = GaussianProcess(EDMSchedule()), RecordedNoise((5, 3, 8, 6))
    Euler(process, num_steps=6, churn=churn, time_grid=ListedTimes(LEVELS)).sample(Spy(), noise, Condition())
    assert len(noise.drawn) == num_draws


@given(amount=st.floats(0, 200), steps=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
@pytest.mark.parametrize("schedule", [CosineSchedule(40), CosineSchedule(40, zero_terminal_snr=True), JSDSchedule(40)])
@pytest.mark.parametrize("build", [Euler, Heun])
def test_churn_never_raises_a_time_above_t_max(
    build: type[Euler] | type[Heun], schedule: NoiseSchedule, amount: float, steps: list[int]
) -> None:
    times, spy = [step / 40 for step in sorted(steps, reverse=True)], Spy()
    process = GaussianProcess(schedule)
    sampler = build(process, num_steps=len(times), churn=Churn(amount), time_grid=ListedTimes(times))
    images = sampler.sample(spy, RecordedNoise((5, 3, 8, 6)), Condition())
    call_times = [float(t[0]) for _, t, _ in spy.calls]
    assert max(call_times) <= 1
    if build is Euler:
        assert all(time <= raised + 1e-9 for time, raised in zip(times, call_times, strict=True))
    torch.testing.assert_close(images, torch.full_like(images, 0.5), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [JSDSchedule(40), RectifiedFlowSchedule()], ids=str)
def test_no_noise_is_added_at_a_time_without_signal(schedule: NoiseSchedule) -> None:
    process, noise = GaussianProcess(schedule), RecordedNoise((5, 3, 8, 6))
    visited, _ = walk(Heun(process, num_steps=4, churn=Churn(9.0)), GaussianOracle(process, 0.3, 0.5), noise)
    assert bool(visited.isfinite().all())
    assert len(noise.drawn) == 4  # the start, and the three later steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": -1.0}, "amount must be at least 0, got -1"),
        ({"sigma_min": -0.1}, r"sigma_min must be in \[0, sigma_max=inf\], got -0.1"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, r"sigma_min must be in \[0, sigma_max=2\], got 3"),
    ],
)
def test_negative_amounts_and_unordered_levels_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Churn(**arguments)
