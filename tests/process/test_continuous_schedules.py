import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    UnitTimeSchedule,
    VESchedule,
    VPSchedule,
)
from support.schedule_examples import CONTINUOUS

EACH_SCHEDULE = pytest.mark.parametrize("schedule", CONTINUOUS, ids=str)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def points(schedule: NoiseSchedule) -> Tensor:
    return torch.linspace(schedule.t_min, schedule.t_max, 1001, dtype=torch.float64)


@given(st.floats(0.002, 80))
def test_edm_sigma_is_the_time_and_alpha_is_1(t: float) -> None:
    alpha_t, sigma_t = EDMSchedule().coefficients(at(t))
    assert (alpha_t.tolist(), sigma_t.tolist()) == ([1.0], [t])


@given(st.floats(1e-6, 1))
def test_rectified_flow_is_a_straight_line(t: float) -> None:
    alpha_t, sigma_t = RectifiedFlowSchedule().coefficients(at(t))
    assert (alpha_t.tolist(), sigma_t.tolist()) == ([1 - t], [t])


@given(st.floats(1e-5, 1), st.floats(0.01, 1), st.floats(2, 40))
def test_vp_signal_is_the_exponential_of_the_integral_of_beta(t: float, low: float, high: float) -> None:
    # The midpoint rule is exact, because beta is linear.
    beta = low + (torch.arange(1000).double() + 0.5) / 1000 * t * (high - low)
    integral = float(beta.mean()) * t
    alpha_t, sigma_t = VPSchedule(low, high).coefficients(at(t))
    assert float(alpha_t) == pytest.approx(math.exp(-integral / 2), rel=1e-9)  # Song et al. (2021), eq. 29
    assert float(sigma_t) == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=1e-9)


def test_vp_at_time_1_is_the_limit_of_the_linear_schedule_of_ddpm() -> None:
    alpha_t, _ = VPSchedule().coefficients(at(1.0))
    assert float(alpha_t) == pytest.approx(math.exp(-0.5 * (0.1 + 20) / 2), rel=1e-12)
    table = LinearSchedule(1000).alpha_bar[-1].sqrt()
    assert float(alpha_t) == pytest.approx(float(table), rel=0.05)


@given(st.floats(1e-5, 1))
def test_ve_noise_grows_geometrically(t: float) -> None:
    alpha_t, sigma_t = VESchedule().coefficients(at(t))
    assert float(alpha_t) == 1
    assert math.log(float(sigma_t)) == pytest.approx((1 - t) * math.log(0.01) + t * math.log(50), rel=1e-9, abs=1e-12)


def test_vp_squared_alpha_and_sigma_sum_to_1() -> None:
    alpha_t, sigma_t = VPSchedule().coefficients(points(VPSchedule()))
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones(1001).double(), rtol=0, atol=1e-14)


def test_vp_sigma_near_the_data_keeps_full_precision() -> None:
    _, sigma_t = VPSchedule().coefficients(at(1e-12))
    assert float(sigma_t) ** 2 == pytest.approx(1e-13, rel=1e-9)


@EACH_SCHEDULE
def test_signal_to_noise_ratio_is_strictly_decreasing(schedule: NoiseSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(points(schedule))
    assert bool(((alpha_t / sigma_t).diff() < 0).all())
    assert bool((schedule.log_snr(points(schedule)).diff() < 0).all())


@EACH_SCHEDULE
@given(quantile=st.floats(0, 1))
def test_at_log_snr_inverts_log_snr(schedule: NoiseSchedule, quantile: float) -> None:
    t = schedule.quantile(at(quantile))
    found = schedule.at_log_snr(schedule.log_snr(t))
    torch.testing.assert_close(found, t, rtol=1e-9, atol=1e-12)


@EACH_SCHEDULE
def test_log_snrs_out_of_range_give_the_first_and_the_last_time(schedule: NoiseSchedule) -> None:
    found = schedule.at_log_snr(at(4000.0, 100.0, -100.0, -4000.0))
    assert found.tolist() == pytest.approx([schedule.t_min] * 2 + [schedule.t_max] * 2, rel=1e-12)


@EACH_SCHEDULE
def test_time_0_is_the_clean_image(schedule: NoiseSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(torch.zeros(5))
    assert alpha_t.tolist() == [1.0] * 5
    assert sigma_t.tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("schedule", "t_min", "t_max"),
    [
        (EDMSchedule(), 0.002, 80.0),
        (EDMSchedule(0.01, 50.0), 0.01, 50.0),
        (RectifiedFlowSchedule(), 1e-3, 1.0),
        (RectifiedFlowSchedule(0.02), 0.02, 1.0),
        (VPSchedule(), 1e-3, 1.0),
        (VPSchedule(first=1e-5), 1e-5, 1.0),
        (VESchedule(), 1e-5, 1.0),
        (VESchedule(first=1e-4), 1e-4, 1.0),
    ],
    ids=str,
)
def test_each_schedule_defines_its_range_of_times(schedule: NoiseSchedule, t_min: float, t_max: float) -> None:
    assert (schedule.t_min, schedule.t_max) == (t_min, t_max)
    assert schedule.quantile(at(0.0, 0.5, 1.0)).tolist() == pytest.approx([t_min, (t_min + t_max) / 2, t_max])
    assert schedule.nearest(at(-1.0, 0.0, 0.3, 100.0)).tolist() == [t_min, t_min, 0.3, t_max]


@EACH_SCHEDULE
@pytest.mark.parametrize("invalid", [-0.01, 81.0, math.nan, math.inf])
def test_times_out_of_range_are_rejected(schedule: NoiseSchedule, invalid: float) -> None:
    with pytest.raises(ValueError, match=rf"t must be in \[0, {schedule.t_max:g}\], got {invalid}"):
        schedule.coefficients(at(0.5, invalid))


@EACH_SCHEDULE
def test_t_max_rounded_to_float32_is_in_range(schedule: NoiseSchedule) -> None:
    rounded = torch.tensor([schedule.t_max * (1 + 1e-7)], dtype=torch.float64)
    assert float(schedule.coefficients(rounded)[1]) == float(schedule.coefficients(at(schedule.t_max))[1])
    with pytest.raises(ValueError, match="t must be in"):
        schedule.coefficients(rounded * (1 + 1e-5))


@pytest.mark.parametrize(
    ("schedule", "above", "alpha", "sigma", "network_time"),
    [
        (EDMSchedule(), 113.137, 1.0, 113.137, math.log(113.137) / 4),
        (VESchedule(), 1.1, 1.0, 0.01 * 5000**1.1, math.log(0.01 * 5000**1.1 / 2)),
        (VPSchedule(), 1.05, math.exp(-11.074875 / 2), math.sqrt(1 - math.exp(-11.074875)), 999 * 1.05),
    ],  # 19.9 / 2 * 1.05^2 + 0.1 * 1.05 = 11.074875
    ids=["edm", "ve", "vp"],
)
def test_schedules_of_karras_et_al_continue_in_closed_form_above_t_max(
    schedule: NoiseSchedule, above: float, alpha: float, sigma: float, network_time: float
) -> None:
    unbounded = schedule.unbounded
    alpha_t, sigma_t = unbounded.coefficients(at(above))
    assert (float(alpha_t), float(sigma_t)) == pytest.approx((alpha, sigma), rel=1e-9)
    assert float(unbounded.network_time(at(above))) == pytest.approx(network_time, rel=1e-9)
    assert float(unbounded.at_log_snr(unbounded.log_snr(at(above)))) == pytest.approx(above, rel=1e-9)
    t = at(0.0, schedule.t_min, 0.3, schedule.t_max)
    assert torch.equal(torch.stack(unbounded.coefficients(t)), torch.stack(schedule.coefficients(t)))
    assert (unbounded.t_max, unbounded.unbounded) == (schedule.t_max, unbounded)


@pytest.mark.parametrize("schedule", [RectifiedFlowSchedule(), CosineSchedule(40)], ids=str)
def test_other_schedules_are_limited_to_t_max(schedule: NoiseSchedule) -> None:
    assert schedule.unbounded == schedule.continuous
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got 1.1"):
        schedule.unbounded.coefficients(at(1.1))


def test_network_times_are_those_of_the_papers() -> None:
    assert EDMSchedule().network_time(at(1.0, 80.0)).tolist() == pytest.approx([0.0, math.log(80) / 4])
    assert RectifiedFlowSchedule().network_time(at(0.25, 1.0)).tolist() == pytest.approx([250, 1000])
    assert VPSchedule().network_time(at(0.25, 1.0)).tolist() == pytest.approx([249.75, 999])
    sigma = math.sqrt(0.01 * 50)
    assert VESchedule().network_time(at(0.5, 1.0)).tolist() == pytest.approx([math.log(sigma / 2), math.log(25)])


@EACH_SCHEDULE
def test_results_are_float64_in_the_shape_of_the_times(schedule: NoiseSchedule) -> None:
    t = torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.3, 0.9]])
    results = (
        *schedule.coefficients(t),
        schedule.nearest(t),
        schedule.quantile(t),
        schedule.network_time(t),
        schedule.at_log_snr(t),
        schedule.following(t),
    )
    assert [(result.shape, result.dtype) for result in results] == [((2, 3), torch.float64)] * 7


@EACH_SCHEDULE
def test_a_continuous_schedule_has_no_steps_and_is_its_own_continuous_extension(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=rf"discrete steps \(linear, .*got the continuous {type(schedule).__name__}"):
        schedule.previous(at(0.5))
    assert schedule.continuous is schedule
    assert schedule.following(at(0.5)).tolist() == [0.5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EDMSchedule(0.0, 80.0), "sigma_min and sigma_max must be above 0, finite .* got 0.0 and 80.0"),
        (lambda: EDMSchedule(80.0, 0.002), "sigma_min and sigma_max must be above 0, finite .* got 80.0 and 0.002"),
        (lambda: EDMSchedule(1.0, math.inf), "sigma_min and sigma_max must be above 0, finite .* got 1.0 and inf"),
        (lambda: VESchedule(1.0, 1.0), "sigma_min and sigma_max must be above 0, finite .* got 1.0 and 1.0"),
        (lambda: VESchedule(first=1.0), r"first must be in \(0, 1\), got 1.0"),
        (lambda: VPSchedule(-0.1, 20.0), "beta_min and beta_max must be above 0, finite .* got -0.1 and 20.0"),
        (lambda: VPSchedule(first=0.0), r"first must be in \(0, 1\), got 0.0"),
        (lambda: RectifiedFlowSchedule(0.0), r"first must be in \(0, 1\), got 0.0"),
    ],
)
def test_invalid_settings_are_rejected(build: Callable[[], NoiseSchedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_schedule_whose_curve_returns_one_tensor_is_refused_when_it_is_built() -> None:
    @dataclass(frozen=True)
    class OneTensor(UnitTimeSchedule):
        def curve(self, t: Tensor) -> Any:
            return t

    with pytest.raises(ValueError, match=r"curve\(t\) of OneTensor must return alpha_t and sigma_t, got <class"):
        OneTensor()
