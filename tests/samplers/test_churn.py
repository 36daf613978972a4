"""Euler and Heun with churn against the formulas of the paper, in its variables x / alpha and sigma / alpha."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMDenoiser,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.samplers import Churn, Euler, Heun, KarrasTimes, ListedTimes, NoClipping
from support.every_sampler import Spy, fingerprint_differences
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise, walk

EDM = GaussianProcess(EDMSchedule())
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
    process: GaussianProcess, time_at: Callable[[float], float], churn: Churn, draws: list[Tensor], *, second: bool,
    levels: Sequence[float] = LEVELS,
) -> list[Tensor]:  # fmt: skip
    """Return the x_i of Karras et al. (2022), algorithm 2, times alpha.  second: with the second-order correction."""
    oracle, visited, remaining = MixtureOracle(process), [], iter(draws)

    def time(level: float) -> Tensor:
        return torch.tensor(time_at(level), dtype=torch.float64)

    def alpha(level: float) -> float:
        return float(process.unbounded.schedule.coefficients(time(level))[0])

    def slope(x: Tensor, level: float) -> Tensor:
        return (x - oracle(alpha(level) * x, time(level).expand(len(x)), Condition()).x_0) / level

    x = next(remaining) * levels[0]
    for level, after in zip(levels, [*levels[1:], 0.0], strict=True):
        active = churn.sigma_min <= level <= churn.sigma_max
        gamma = min(churn.amount / len(levels), math.sqrt(2) - 1) if active else 0.0
        raised = level + gamma * level
        if gamma > 0:
            x = x + math.sqrt(raised**2 - level**2) * churn.noise_scale * next(remaining)
        d = slope(x, raised)
        x_next = x + (after - raised) * d
        if after > 0 and second:
            x_next = x + (after - raised) * (d / 2 + slope(x_next, after) / 2)
        x = x_next
        visited.append(x if after == 0 else alpha(after) * x)
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


RHO = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]  # eq. 5


def time_of_vp(level: float) -> float:
    """Return t with log(1 + level^2) = 19.9 / 2 t^2 + 0.1 t (Karras et al. 2022, Table 1)."""
    return (math.sqrt(0.01 + 2 * 19.9 * math.log1p(level**2)) - 0.1) / 19.9


# The first level of VP is that of t = 1, which is (exp(19.9 / 2 + 0.1) - 1)^(1/2) = 152.2.
WITH_TIMES_ABOVE_T_MAX: dict[str, tuple[NoiseSchedule, Callable[[float], float], list[float]]] = {
    "edm": (EDMSchedule(), lambda level: level, RHO),
    "ve": (VESchedule(), lambda level: math.log(level / 0.01) / math.log(5000), [50.0, 20.0, 3.0, 0.5, 0.05]),
    "vp": (VPSchedule(), time_of_vp, [math.sqrt(math.expm1(10.05)), 20.0, 3.0, 0.5, 0.05]),
}


@pytest.mark.parametrize(
    ("schedule", "time_at", "levels"), WITH_TIMES_ABOVE_T_MAX.values(), ids=WITH_TIMES_ABOVE_T_MAX.keys()
)
@pytest.mark.parametrize("build", [Euler, Heun])
def test_algorithm_2_raises_the_first_level_above_sigma_max(
    build: type[Euler] | type[Heun], schedule: NoiseSchedule, time_at: Callable[[float], float], levels: list[float]
) -> None:
    process, noise, churn = GaussianProcess(schedule), RecordedNoise((5, 3, 8, 6)), Churn(40.0, above_t_max=True)
    times = [min(time_at(level), schedule.t_max) for level in levels]
    sampler = build(process, num_steps=len(levels), churn=churn, time_grid=ListedTimes(times), clipping=NoClipping())
    initial = sampler.initial_std / levels[0]  # exactly 1, or 1 / sigma for the unit std of VP
    visited, _ = walk(sampler, MixtureOracle(process), noise)
    drawn = [noise.drawn[0] * initial / schedule_alpha(schedule, times[0]), *noise.drawn[1:]]
    expected = algorithm_2(process, time_at, churn, drawn, second=build is Heun, levels=levels)
    torch.testing.assert_close(visited, torch.stack(expected), rtol=1e-7, atol=1e-7)


def schedule_alpha(schedule: NoiseSchedule, t: float) -> float:
    return float(schedule.coefficients(torch.tensor(t, dtype=torch.float64))[0])


@pytest.mark.parametrize(("churn", "first"), [(Churn(40.0, above_t_max=True), 113.137), (Churn(40.0), 80.0)])
def test_the_first_of_18_steps_of_edm_is_raised_from_80_to_113_only_above_t_max(churn: Churn, first: float) -> None:
    spy = Spy()
    Heun(EDM, churn=churn, time_grid=KarrasTimes()).sample(spy, RecordedNoise((5, 3, 8, 6)))
    assert float(spy.calls[0][1][0]) == pytest.approx(first, abs=1e-3)


def test_a_network_of_edm_receives_the_raised_level() -> None:
    levels: list[float] = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        levels.append(math.exp(4 * float(time[0])))  # c_noise = ln(sigma) / 4
        return torch.zeros_like(x)

    denoiser = Denoiser(network, EDM, EDMDenoiser())
    sampler = Heun(EDM, churn=Churn(40.0, above_t_max=True), time_grid=KarrasTimes())
    sampler.sample(denoiser, RecordedNoise((2, 3, 8, 6)))
    assert levels[0] == pytest.approx(80 * math.sqrt(2), rel=1e-5)
    assert len(levels) == sampler.num_evaluations == 35


@pytest.mark.parametrize("schedule", [EDMSchedule(), VESchedule(), VPSchedule()], ids=str)
def test_given_times_and_training_times_above_t_max_are_refused(schedule: NoiseSchedule) -> None:
    process, above = GaussianProcess(schedule), 1.1 * schedule.t_max
    with pytest.raises(ValueError, match=rf"t must be in \[0, {schedule.t_max:g}\], got"):
        Heun(process, num_steps=2, churn=Churn(40.0, above_t_max=True), time_grid=ListedTimes([above, 0.5]))
    with pytest.raises(ValueError, match=rf"t must be in \[0, {schedule.t_max:g}\], got"):
        process.q_sample(torch.zeros(1, 3, 8, 6), torch.tensor([above]), torch.zeros(1, 3, 8, 6))


ABOVE = {"churn.above_t_max": ["missing", True]}


@pytest.mark.parametrize(
    ("process", "amount", "sigma_max", "expected"),
    [
        (EDM, 40.0, math.inf, ABOVE),
        (EDM, 0.0, math.inf, {}),
        (EDM, 40.0, 50.0, {}),
        (GaussianProcess(CosineSchedule(1000)), 10.0, math.inf, {}),
        (GaussianProcess(RectifiedFlowSchedule()), 10.0, math.inf, {}),
    ],
)
def test_above_t_max_is_in_fingerprints_and_changes_evaluations_only_if_a_time_is_raised_above_t_max(
    process: GaussianProcess, amount: float, sigma_max: float, expected: dict[str, Any]
) -> None:
    churns = (Churn(amount, 0.0, sigma_max), Churn(amount, 0.0, sigma_max, above_t_max=True))
    before, now = (Heun(process, churn=churn, time_grid=KarrasTimes()) for churn in churns)
    assert fingerprint_differences(before, now) == expected
    assert before.num_evaluations == now.num_evaluations


@given(amount=st.floats(0, 200), steps=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
@pytest.mark.parametrize("schedule", [CosineSchedule(40), CosineSchedule(40, zero_terminal_snr=True), JSDSchedule(40)])
@pytest.mark.parametrize("build", [Euler, Heun])
@pytest.mark.parametrize("above_t_max", [False, True])
def test_churn_never_raises_a_time_of_a_discrete_schedule_above_t_max(
    build: type[Euler] | type[Heun], schedule: NoiseSchedule, amount: float, steps: list[int],
    above_t_max: bool,
) -> None:  # fmt: skip
    times, spy = [step / 40 for step in sorted(steps, reverse=True)], Spy()
    process, churn = GaussianProcess(schedule), Churn(amount, above_t_max=above_t_max)
    sampler = build(process, num_steps=len(times), churn=churn, time_grid=ListedTimes(times))
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
def test_negative_amounts_and_unordered_levels_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Churn(**arguments)
