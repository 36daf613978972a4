"""Golden values from independent public implementations in float64, compared to all digits that are listed."""

import math
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.process import (
    ConstantSchedule,
    CosineSchedule,
    CustomSchedule,
    JSDSchedule,
    LinearScaledSchedule,
    LinearSchedule,
    NoiseSchedule,
    QuadraticSchedule,
    SigmoidBetaSchedule,
    SigmoidSchedule,
    TableSchedule,
    WarmupSchedule,
)
from support.schedule_examples import TABLES

# schedule, first and last variance, signal level at index 0, T/4 - 1, T/2 - 1, 3T/4 - 1, T - 1
GOLDEN = [
    (LinearSchedule(1000), "1.000000e-04 0.02000000", "0.9999000 0.5240854 0.07858724 3.350550e-03 4.035830e-05"),
    (LinearScaledSchedule(1000), "1.000000e-04 0.0200000", "0.9999000 0.5240854 0.07858724 3.350550e-03 4.035830e-05"),
    (LinearScaledSchedule(4000), "2.500000e-05 0.0050000", "0.9999750 0.5237808 0.07894487 3.418601e-03 4.246652e-05"),
    (CosineSchedule(1000), "4.128422e-05 0.9990000", "0.9999587 0.8470122 0.4938436 0.1442721 2.428767e-09"),
    (CosineSchedule(4000), "9.865819e-06 0.9990000", "0.9999901 0.8470122 0.4938436 0.1442721 1.517980e-10"),
    (QuadraticSchedule(1000), "1.000000e-04 0.02000000", "0.9999000 0.8215213 0.3331878 3.860551e-02 7.334125e-04"),
    (
        QuadraticSchedule(1000, 0.00085, 0.012),
        "8.500000e-04 0.01200000",
        "0.9991500 0.6754324 0.2776697 5.662349e-02 4.660099e-03",
    ),
    (SigmoidSchedule(1000), "3.002792e-04 0.9990000", "0.9996997 0.8508535 0.5000000 0.1491465 3.002792e-07"),
    (SigmoidBetaSchedule(1000), "1.492052e-04 0.019951", "0.9998508 0.9037447 0.3019311 5.732199e-03 3.968182e-05"),
]


def assert_agrees(value: float, golden: str) -> None:
    """Assert that value agrees with all digits of golden."""
    exponent = Decimal(golden).as_tuple().exponent
    assert isinstance(exponent, int)
    assert abs(value - float(golden)) <= 0.5000001 * 10.0**exponent, (value, golden)


@pytest.mark.parametrize(("schedule", "ends", "levels"), GOLDEN, ids=lambda value: str(value)[:40])
def test_alpha_bar_and_betas_are_the_published_values(schedule: TableSchedule, ends: str, levels: str) -> None:
    steps = schedule.num_timesteps
    index = [0, steps // 4 - 1, steps // 2 - 1, 3 * steps // 4 - 1, steps - 1]
    for value, golden in zip(schedule.alpha_bar[index].tolist(), levels.split(), strict=True):
        assert_agrees(value, golden)
    for value, golden in zip(schedule.betas[[0, -1]].tolist(), ends.split(), strict=True):
        assert_agrees(value, golden)


@pytest.mark.parametrize("schedule", TABLES, ids=str)
def test_tables_are_float64_with_one_value_per_step(schedule: TableSchedule) -> None:
    for table in (schedule.betas, schedule.alpha_bar, schedule.steps):
        assert table.dtype == torch.float64
        assert table.shape == (schedule.num_timesteps,)


def test_linear_variances_are_evenly_spaced() -> None:
    torch.testing.assert_close(LinearSchedule(5, 0.1, 0.5).betas, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double())


@given(st.integers(20, 4000))
def test_linear_scaled_variances_have_the_same_sum_for_any_number_of_steps(steps: int) -> None:
    betas = LinearScaledSchedule(steps).betas
    assert float(betas[0]) == pytest.approx(0.1 / steps, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(min(20 / steps, 1), rel=1e-12)
    assert float(betas.sum()) == pytest.approx(10.05, rel=1e-12)  # 1000 times the mean of 1e-4 and 0.02


def test_square_roots_of_quadratic_variances_are_evenly_spaced() -> None:
    betas = QuadraticSchedule(4, 0.01, 0.16).betas
    assert betas.tolist() == pytest.approx([0.01, 0.04, 0.09, 0.16], rel=1e-12)


@pytest.mark.parametrize("offset", [0.008, 0.05])
def test_cosine_alpha_bar_is_equation_17_up_to_the_clipped_last_step(offset: float) -> None:
    schedule = CosineSchedule(1000, offset)
    curve = torch.cos((schedule.steps + offset) / (1 + offset) * math.pi / 2) ** 2
    expected = curve / math.cos(offset / (1 + offset) * math.pi / 2) ** 2  # Nichol & Dhariwal (2021), eq. 17
    torch.testing.assert_close(schedule.alpha_bar[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert float(schedule.alpha_bar[-1] / schedule.alpha_bar[-2]) == pytest.approx(1 - 0.999, rel=1e-9)


@pytest.mark.parametrize("schedule", [CosineSchedule(40, max_beta=0.2), SigmoidSchedule(40, max_beta=0.2)], ids=str)
def test_variances_are_clipped_to_max_beta(schedule: TableSchedule) -> None:
    assert float(schedule.betas.max()) == 0.2
    assert int((schedule.betas == 0.2).sum()) > 1


@pytest.mark.parametrize(("start", "end", "temperature"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-2.0, 4.0, 1.5)])
def test_sigmoid_alpha_bar_is_algorithm_1_of_jabri_et_al(start: float, end: float, temperature: float) -> None:
    schedule = SigmoidSchedule(50, start, end, temperature)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x / temperature))

    for k in range(1, 50):  # the last step is clipped
        level = (sigmoid(end) - sigmoid(start + k / 50 * (end - start))) / (sigmoid(end) - sigmoid(start))
        assert float(schedule.alpha_bar[k - 1]) == pytest.approx(level, rel=1e-9)


def test_the_published_last_alpha_bar_of_the_sigmoid_differs_by_float32_rounding_of_the_ends() -> None:
    start, end = torch.tensor([-3.0, 3.0]).sigmoid().double()
    before_last = (end - torch.tensor(3 - 6 / 1000, dtype=torch.float64).sigmoid()) / (end - start)
    before_last = before_last / ((end - torch.tensor(-3.0).double().sigmoid()) / (end - start))
    assert_agrees(0.001 * float(before_last), "3.002870e-07")  # GOLDEN has the float64 value 3.002792e-07
    assert float(SigmoidSchedule(1000).alpha_bar[-1]) == pytest.approx(0.001 * float(before_last), rel=3e-5)


def test_sigmoid_beta_variances_are_a_sigmoid_over_minus_6_to_6() -> None:
    betas = SigmoidBetaSchedule(13, 0.1, 0.5).betas
    expected = [0.1 + 0.4 / (1 + math.exp(-x)) for x in range(-6, 7)]
    assert betas.tolist() == pytest.approx(expected, rel=1e-12)


def test_constant_variances_give_a_geometric_alpha_bar() -> None:
    schedule = ConstantSchedule(30, 0.05)
    assert schedule.betas.tolist() == [0.05] * 30
    assert schedule.alpha_bar.tolist() == pytest.approx([0.95**k for k in range(1, 31)], rel=1e-12)


@given(st.integers(1, 2000))
def test_jsd_alpha_bar_falls_linearly_to_0(steps: int) -> None:
    schedule = JSDSchedule(steps)
    assert schedule.betas.tolist() == pytest.approx([1 / (steps - k) for k in range(steps)], rel=1e-12)
    assert schedule.alpha_bar.tolist() == pytest.approx([1 - k / steps for k in range(1, steps + 1)], abs=1e-12)
    assert float(schedule.alpha_bar[-1]) == 0


def test_warmup_variances_increase_for_a_fraction_of_the_steps() -> None:
    assert WarmupSchedule(10, 0.1, 0.4, 0.4).betas.tolist() == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 7, rel=1e-12)
    assert WarmupSchedule(10, 0.1, 0.4, 0.0).betas.tolist() == [0.4] * 10
    full = WarmupSchedule(10, 0.1, 0.4, 1.0).betas
    torch.testing.assert_close(full, LinearSchedule(10, 0.1, 0.4).betas, rtol=1e-12, atol=0)


def test_default_settings_are_those_of_ho_et_al() -> None:
    assert ConstantSchedule().betas.tolist() == [0.02] * 1000
    betas = WarmupSchedule().betas
    assert int((betas < 0.02).sum()) == 99  # the hundredth is 0.02
    assert [float(betas[0]), float(betas[-1]), len(betas)] == [1e-4, 0.02, 1000]


@pytest.mark.parametrize("schedule", [table for table in TABLES if not isinstance(table, CustomSchedule)], ids=str)
def test_tables_have_1000_steps_by_default_and_zero_terminal_snr_is_keyword_only(schedule: TableSchedule) -> None:
    kind: Any = type(schedule)
    assert kind().num_timesteps == 1000
    assert not kind().zero_terminal_snr
    settings = [value.default for value in fields(kind) if value.name != "zero_terminal_snr"]
    with pytest.raises(TypeError, match="positional argument"):
        kind(*settings, False)


def test_a_custom_schedule_has_exactly_the_given_variances() -> None:
    schedule = CustomSchedule([0.3, 0.1, 0.7])
    assert schedule.num_timesteps == 3
    assert schedule.betas.tolist() == [0.3, 0.1, 0.7]
    assert schedule.alpha_bar.tolist() == pytest.approx([0.7, 0.63, 0.189], rel=1e-12)
    assert schedule == CustomSchedule((0.3, 0.1, 0.7))
    assert schedule != CustomSchedule([0.3, 0.1, 0.7], zero_terminal_snr=True)
    assert str(schedule) == "CustomSchedule(variances=(0.3, 0.1, 0.7), zero_terminal_snr=False)"


@pytest.mark.parametrize(
    ("schedule", "rescaled"),
    [
        (LinearSchedule(50, 1e-3, 0.1), LinearSchedule(50, 1e-3, 0.1, zero_terminal_snr=True)),
        (QuadraticSchedule(1000), QuadraticSchedule(1000, zero_terminal_snr=True)),
        (CosineSchedule(200), CosineSchedule(200, zero_terminal_snr=True)),
        (CustomSchedule([0.3, 0.1, 0.7]), CustomSchedule([0.3, 0.1, 0.7], zero_terminal_snr=True)),
    ],
    ids=str,
)
def test_zero_terminal_snr_rescales_alpha_to_end_at_0_and_keeps_the_first(
    schedule: TableSchedule, rescaled: TableSchedule
) -> None:
    old, _ = schedule.coefficients(schedule.steps)
    new, sigma = rescaled.coefficients(rescaled.steps)
    assert float(new[-1]) == 0
    assert float(sigma[-1]) == 1
    assert float(rescaled.betas[-1]) == 1
    assert float(new[0]) == pytest.approx(float(old[0]), rel=1e-14)
    expected = (old - old[-1]) * old[0] / (old[0] - old[-1])  # Lin et al. (2024), algorithm 1
    torch.testing.assert_close(new, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", TABLES, ids=str)
def test_only_jsd_and_zero_terminal_snr_end_without_signal(schedule: TableSchedule) -> None:
    ends_without = isinstance(schedule, JSDSchedule) or schedule.zero_terminal_snr
    assert (schedule.remaining_signal == 0) == ends_without


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearSchedule(0), "num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: LinearSchedule(10**9), "num_timesteps must be at most 1,000,000, got 1000000000"),
        (lambda: CosineSchedule(-3), "num_timesteps must be a whole number of at least 1, got -3"),
        (lambda: JSDSchedule(0), "num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: LinearScaledSchedule(0), "num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: CustomSchedule([]), "num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: LinearSchedule(10.5), "num_timesteps must be a whole number of at least 1, got 10.5"),  # type: ignore[arg-type]
        (lambda: LinearSchedule(beta_start=-0.1), r"betas must be in \[0, 1\], got -0.1 from LinearSchedule"),
        (lambda: LinearSchedule(beta_end=1.1), r"betas must be in \[0, 1\], got 1.* from LinearSchedule"),
        (lambda: LinearScaledSchedule(10), r"betas must be in \[0, 1\], got 1.* from LinearScaledSchedule"),
        (lambda: SigmoidBetaSchedule(beta_end=1.1), r"betas must be in \[0, 1\], got 1.* from SigmoidBetaSchedule"),
        (lambda: ConstantSchedule(5, -0.2), r"betas must be in \[0, 1\], got -0.2 from ConstantSchedule"),
        (lambda: CustomSchedule([0.1, 1.5]), r"betas must be in \[0, 1\], got 1.5 from CustomSchedule"),
        (lambda: CustomSchedule([0.1, math.nan]), r"betas must be in \[0, 1\], got nan from CustomSchedule"),
        (lambda: QuadraticSchedule(beta_start=-0.1), r"beta_start must be in \[0, 1\], got -0.1"),
        (lambda: QuadraticSchedule(beta_end=1.1), r"beta_end must be in \[0, 1\], got 1.1"),
        (lambda: CosineSchedule(offset=1.0), r"offset must be in \[0, 1\), got 1.0"),
        (lambda: CosineSchedule(offset=-0.1), r"offset must be in \[0, 1\), got -0.1"),
        (lambda: CosineSchedule(max_beta=0.0), r"max_beta must be in \(0, 1\], got 0.0"),
        (lambda: SigmoidSchedule(max_beta=1.1), r"max_beta must be in \(0, 1\], got 1.1"),
        (lambda: SigmoidSchedule(start=3.0), "start must be below end=3.0, got 3.0"),
        (lambda: SigmoidSchedule(temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: WarmupSchedule(fraction=1.1), r"fraction must be in \[0, 1\], got 1.1"),
        (lambda: WarmupSchedule(fraction=-0.1), r"fraction must be in \[0, 1\], got -0.1"),
        (lambda: CustomSchedule([0.1, 1.0, 0.1]), "betas must be below 1 before the last step .*, got 1"),
        (lambda: ConstantSchedule(5, 1.0), "betas must be below 1 before the last step .*, got 1"),
        (lambda: JSDSchedule(40, zero_terminal_snr=True), "zero_terminal_snr must be false .* is already 0"),
        (lambda: CustomSchedule([0.1], zero_terminal_snr=True), "zero_terminal_snr must be false .* a single step"),
        (lambda: CustomSchedule([0.1, 0.0], zero_terminal_snr=True), "if no step after the first adds noise, got true"),
    ],
)
def test_invalid_settings_are_rejected(build: Callable[[], NoiseSchedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_last_variance_may_be_1_and_the_first_0() -> None:
    assert CustomSchedule([0.0, 0.5, 1.0]).alpha_bar.tolist() == pytest.approx([1.0, 0.5, 0.0])
