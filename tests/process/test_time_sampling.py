import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    LogitNormal,
    LogNormalSigma,
    NoiseSchedule,
    RectifiedFlowSchedule,
    Stratified,
    TimeDistribution,
    Uniform,
    VPSchedule,
)
from diffusion_lab.randomness import Draws
from support.schedule_examples import SCHEDULES

EVENLY_SPACED = (torch.arange(20_000).double() + 0.5) / 20_000
"""Midpoints of equal intervals in [0, 1], so that an average over them is a numerical integral."""


@dataclass
class FixedNumbers:
    """Given numbers instead of random ones."""

    numbers: Tensor
    shared: float = 0.0
    positions: list[int] = field(default_factory=list)
    batch_size: int = 0

    def times(self) -> Tensor:
        return self.numbers

    def shared_time(self) -> Tensor:
        return torch.tensor(self.shared, dtype=torch.float64)


def log_ratio(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    return -schedule.log_snr(t) / 2


def test_uniform_times_have_each_step_equally_often() -> None:
    t, _ = Uniform(LinearSchedule(25)).sample(FixedNumbers(torch.arange(1000).double() / 1000))
    times, counts = np.unique(t.numpy(), return_counts=True)
    assert t.dtype == torch.float64
    assert times.tolist() == [k / 25 for k in range(1, 26)]
    assert counts.tolist() == [40] * 25


def test_uniform_times_of_a_continuous_schedule_cover_its_range() -> None:
    t, _ = Uniform(EDMSchedule(10.0, 30.0)).sample(FixedNumbers(torch.tensor([0.0, 0.25, 0.999]).double()))
    assert t.tolist() == pytest.approx([10.0, 15.0, 29.98])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("build", [Uniform, Stratified, LogNormalSigma, LogitNormal])
def test_times_are_float64_times_of_the_schedule_with_weight_1(
    build: Callable[[NoiseSchedule], TimeDistribution], schedule: NoiseSchedule
) -> None:
    t, weight = build(schedule).sample(Draws(seed=3, step=5, positions=range(500), batch_size=500))
    assert (t.dtype, t.shape) == (torch.float64, (500,))
    assert schedule.t_min <= float(t.min()) < float(t.max()) <= schedule.t_max
    assert len(set(t.tolist())) > 4
    schedule.coefficients(t)
    assert weight.dtype == torch.float32
    assert weight.tolist() == [1.0] * 500


def test_times_of_a_training_step_are_steps_of_the_schedule() -> None:
    schedule = CosineSchedule(1000)
    t, _ = Uniform(schedule).sample(Draws(seed=3, step=5, positions=range(4096), batch_size=4096))
    index = schedule.network_time(t)
    assert (float(index.min()), float(index.max())) == (0, 999)
    assert abs(float(index.mean()) - 499.5) < 15  # three standard errors: 1000 / sqrt(12 * 4096) = 4.5


@given(st.integers(0, 10**6), st.integers(2, 97))
def test_stratified_times_have_one_time_in_each_of_b_equal_intervals(step: int, batch_size: int) -> None:
    t, _ = Stratified(RectifiedFlowSchedule()).sample(Draws(7, step, range(batch_size), batch_size))
    position = (t - 1e-3) / (1 - 1e-3) * batch_size
    assert sorted(position.floor().int().tolist()) == list(range(batch_size))
    assert sorted((position % 1).tolist()) == pytest.approx([float(position[0] % 1)] * batch_size, abs=1e-9)


@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 1000))
def test_stratified_times_do_not_depend_on_the_split_of_the_batch(positions: list[int], cut: int, step: int) -> None:
    times = Stratified(LinearSchedule(100))
    whole, _ = times.sample(Draws(7, step, range(12), batch_size=12))
    parts = [times.sample(Draws(7, step, part, batch_size=12))[0] for part in (positions[:cut], positions[cut:])]
    assert torch.equal(torch.cat(parts), whole[positions])


def test_stratified_times_of_t_images_are_all_t_steps() -> None:
    draws = FixedNumbers(torch.empty(0), shared=0.93, positions=list(range(50)), batch_size=50)
    t, _ = Stratified(LinearSchedule(50)).sample(draws)
    assert sorted(t.tolist()) == pytest.approx([k / 50 for k in range(1, 51)])
    assert t[:4].tolist() == pytest.approx([0.94, 0.96, 0.98, 1.0])
    assert t[4:6].tolist() == pytest.approx([0.02, 0.04])


def test_stratified_times_of_one_position_are_uniform_over_training_steps() -> None:
    t = torch.cat([Stratified(EDMSchedule(1.0, 2.0)).sample(Draws(7, step, [3], 16))[0] for step in range(2000)])
    counts = torch.histc(t.float(), 10, 1, 2)
    assert float((counts - 200).abs().max()) < 60  # 4.5 standard deviations


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    [(EDMSchedule(1e-4, 1e3), 1e-3), (VPSchedule(0.1, 60.0, first=1e-7), 1e-3), (CosineSchedule(4000), 0.02)],
    ids=str,
)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-0.4, 0.7)])
def test_log_normal_times_have_the_given_mean_and_std(
    schedule: NoiseSchedule, tolerance: float, mean: float, std: float
) -> None:
    t, _ = LogNormalSigma(schedule, mean, std).sample(FixedNumbers(EVENLY_SPACED))
    ratio = log_ratio(schedule, t)
    assert float(ratio.mean()) == pytest.approx(mean, abs=tolerance)
    assert float(ratio.std()) == pytest.approx(std, abs=tolerance)
    within_one = ((ratio - mean).abs() < std).double().mean()
    assert float(within_one) == pytest.approx(0.6827, abs=tolerance)


def test_log_normal_times_are_those_of_karras_et_al_by_default_and_increase_with_u() -> None:
    schedule = EDMSchedule()
    median, one_std_up = 0.5, 0.8413447460685429
    numbers = torch.tensor([median, one_std_up, 0.999], dtype=torch.float64)
    t, _ = LogNormalSigma(schedule).sample(FixedNumbers(numbers))
    assert t[:2].log().tolist() == pytest.approx([-1.2, 0.0], abs=1e-9)
    assert bool((t.diff() > 0).all())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6)])
def test_logit_normal_times_have_the_given_mean_and_std(mean: float, std: float) -> None:
    t, _ = LogitNormal(EDMSchedule(2.0, 10.0), mean, std).sample(FixedNumbers(EVENLY_SPACED))
    logit = ((t - 2) / 8).logit()
    assert float(logit.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(logit.std()) == pytest.approx(std, abs=1e-3)
    assert float(LogitNormal(EDMSchedule()).mean) == 0.0
    assert float(LogitNormal(EDMSchedule()).std) == 1.0


@pytest.mark.parametrize("build", [LogNormalSigma, LogitNormal])
def test_extreme_uniform_numbers_give_valid_times(build: Callable[[NoiseSchedule], TimeDistribution]) -> None:
    for schedule in SCHEDULES:
        t, _ = build(schedule).sample(FixedNumbers(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)))
        assert bool(t.isfinite().all())
        schedule.coefficients(t)


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_std_of_0_or_less_is_rejected(std: float) -> None:
    for build in (LogNormalSigma, LogitNormal):
        with pytest.raises(ValueError, match=f"std must be above 0, got {std}"):
            build(EDMSchedule(), std=std)


def test_fixed_distributions_ignore_losses() -> None:
    draws = Draws(0, 0, range(5), batch_size=5)
    for build in (Uniform, Stratified, LogNormalSigma, LogitNormal):
        times = build(LinearSchedule(25))
        before, _ = times.sample(draws)
        times.update(draws, before, torch.full((5,), math.inf))
        times.finish_step()
        assert torch.equal(times.sample(draws)[0], before)
