import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    X0,
    CosineSchedule,
    CustomSchedule,
    EDMDenoiser,
    EDMSchedule,
    Epsilon,
    FlowVelocity,
    GaussianProcess,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    PosteriorMean,
    Prediction,
    RectifiedFlowSchedule,
    Score,
    V,
    VESchedule,
    VPSchedule,
)
from support.schedule_examples import CONTINUOUS, PREDICTIONS, SCHEDULES, TABLES, VARIED, accepted, some_times

PAIRS = [
    pytest.param(
        prediction,
        GaussianProcess(schedule),
        id=f"{prediction}-{schedule}",
        marks=[] if schedule in VARIED else [pytest.mark.full],
    )
    for prediction in PREDICTIONS
    for schedule in SCHEDULES
    if accepted(prediction, schedule)
]
# alpha is 0.8 and 0.6, sigma is 0.6 and 0.8: alpha_bar is 0.8^2 after the first step, 0.8^2 * 0.75^2 after the second.
TWO_STEPS = GaussianProcess(CustomSchedule([0.36, 1 - 0.5625]))
T_1, T_2 = torch.tensor([0.5], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    x_0, noise = torch.randn(2, 5, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x_0, noise


def target_of(prediction: Prediction, t: Tensor, process: GaussianProcess) -> float:
    """Return the target for an image of 0.5 and noise of -2."""
    x_0, noise = torch.full((1, 3, 8, 6), 0.5).double(), torch.full((1, 3, 8, 6), -2.0).double()
    target = prediction.target(x_0, noise, t, process)
    assert target.shape == x_0.shape
    assert torch.equal(target, target[:, :1, :1, :1].expand_as(target))
    return float(target[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("prediction", "first", "second"),
    [
        (Epsilon(), -2.0, -2.0),  # Ho et al. (2020), eq. 12
        (X0(), 0.5, 0.5),
        (V(), 0.8 * -2 - 0.6 * 0.5, 0.6 * -2 - 0.8 * 0.5),  # Salimans & Ho (2022), appendix D
        (Score(), 2 / 0.6, 2 / 0.8),  # Song & Ermon (2019), eq. 5
        (FlowVelocity(), -2.5, -2.5),  # Liu et al. (2023), eq. 1
        # Ho et al. (2020), eq. 7: 0.8 * 0.4375 / 0.64 x_0 + 0.75 * 0.36 / 0.64 x_t
        (PosteriorMean(), 0.5, 0.8 * 0.4375 / 0.64 * 0.5 + 0.75 * 0.36 / 0.64 * (0.6 * 0.5 - 0.8 * 2)),
        # Karras et al. (2022), eq. 8, of the noise over the signal: (x_0 - c_skip x_t) / c_out
        (EDMDenoiser(1.0), 0.6 * 0.5 + 0.8 * 2, 0.8 * 0.5 + 0.6 * 2),
    ],
    ids=str,
)
def test_targets_are_those_of_the_papers(prediction: Prediction, first: float, second: float) -> None:
    assert target_of(prediction, T_1, TWO_STEPS) == pytest.approx(first, rel=1e-12)
    assert target_of(prediction, T_2, TWO_STEPS) == pytest.approx(second, rel=1e-12)


def test_score_is_the_gradient_of_the_log_density_of_the_noisy_image() -> None:
    process, t = GaussianProcess(VPSchedule()), torch.full((5,), 0.3).double()
    x_0, noise = images()
    x_t = process.q_sample(x_0, t, noise).requires_grad_()
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    log_density = -((x_t - alpha_t * x_0) ** 2) / (2 * sigma_t**2)  # of q(x_t | x_0), up to a constant
    (score,) = torch.autograd.grad(log_density.sum(), x_t)
    torch.testing.assert_close(Score().target(x_0, noise, t, process), score, rtol=1e-9, atol=1e-9)


def test_posterior_mean_target_is_the_posterior_mean_of_the_process_at_every_step() -> None:
    process = GaussianProcess(CosineSchedule(5))
    x_0, noise = images()
    t = process.schedule.nearest(torch.linspace(0.2, 1, 5))
    mean, _ = process.q_posterior(x_0, process.q_sample(x_0, t, noise), t - 0.2, t)
    torch.testing.assert_close(PosteriorMean().target(x_0, noise, t, process), mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("prediction", "process"), PAIRS)
@settings(max_examples=3)
@given(quantiles=st.lists(st.floats(0, 1), min_size=5, max_size=5), seed=st.integers(0, 2**32))
def test_the_target_converts_to_the_clean_image_and_to_the_noise(
    prediction: Prediction, process: GaussianProcess, quantiles: list[float], seed: int
) -> None:
    x_0, noise = images(seed)
    t = process.schedule.nearest(process.schedule.quantile(torch.tensor(quantiles, dtype=torch.float64)))
    target, x_t = prediction.target(x_0, noise, t, process), process.q_sample(x_0, t, noise)
    torch.testing.assert_close(prediction.to_x_0(target, x_t, t, process), x_0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.to_noise(target, x_t, t, process), noise, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V(), FlowVelocity(), PosteriorMean()], ids=str)
def test_the_target_converts_to_the_clean_image_if_the_first_step_adds_no_noise(prediction: Prediction) -> None:
    process = GaussianProcess(LinearSchedule(40, 0.0, 0.3))
    x_0, noise = images()
    t = torch.tensor([1, 1, 2, 3, 40], dtype=torch.float64) / 40
    target, x_t = prediction.target(x_0, noise, t, process), process.q_sample(x_0, t, noise)
    torch.testing.assert_close(prediction.to_x_0(target, x_t, t, process), x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("prediction", "process"), PAIRS)
def test_error_ratio_is_the_ratio_of_measured_squared_errors(prediction: Prediction, process: GaussianProcess) -> None:
    x_t, output = images()
    t = some_times(process.schedule)
    output.requires_grad_()
    (gain,) = torch.autograd.grad(prediction.to_x_0(output, x_t, t, process).sum(), output)
    torch.testing.assert_close(prediction.error_ratio(t, process), gain[:, 0, 0, 0] ** -2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [TABLES[0], TABLES[3], *CONTINUOUS], ids=str)
def test_error_ratios_are_the_snr_for_epsilon_1_for_x_0_and_snr_plus_1_for_v(
    schedule: NoiseSchedule,
) -> None:
    process, t = GaussianProcess(schedule), some_times(schedule)
    alpha_t, sigma_t = schedule.coefficients(t)
    snr = alpha_t**2 / sigma_t**2
    # (alpha^2 + sigma^2)^2 / sigma^2 is SNR + 1 for variance-preserving schedules.
    for prediction, expected in ((Epsilon(), snr), (X0(), snr**0), (V(), (alpha_t**2 + sigma_t**2) ** 2 / sigma_t**2)):
        torch.testing.assert_close(prediction.error_ratio(t, process), expected, rtol=1e-9, atol=1e-12)


@given(sigma=st.floats(0.002, 80), sigma_data=st.floats(0.05, 3))
def test_edm_preconditioning_is_table_1_of_karras_et_al(sigma: float, sigma_data: float) -> None:
    t = torch.tensor([sigma], dtype=torch.float64)
    preconditioning = EDMDenoiser(sigma_data).preconditioning(t, GaussianProcess(EDMSchedule()))
    power = sigma**2 + sigma_data**2
    assert float(preconditioning.c_skip) == pytest.approx(sigma_data**2 / power, rel=1e-9)
    assert float(preconditioning.c_out) == pytest.approx(sigma * sigma_data / math.sqrt(power), rel=1e-9)
    assert float(preconditioning.c_in) == pytest.approx(1 / math.sqrt(power), rel=1e-9)
    assert float(preconditioning.c_noise) == pytest.approx(math.log(sigma) / 4, abs=1e-12)


def test_sigma_data_is_a_half_by_default() -> None:
    assert EDMDenoiser() == EDMDenoiser(0.5)


def test_edm_prediction_with_sigma_data_1_is_minus_v_for_variance_preserving_schedules() -> None:
    for schedule in (CosineSchedule(5), VPSchedule(), CosineSchedule(5).continuous):
        process, (x_0, noise), t = GaussianProcess(schedule), images(), some_times(schedule)
        v, edm = (prediction.target(x_0, noise, t, process) for prediction in (V(), EDMDenoiser(1.0)))
        torch.testing.assert_close(edm, -v, rtol=1e-12, atol=1e-12)
        preconditioning = EDMDenoiser(1.0).preconditioning(t, process)
        torch.testing.assert_close(preconditioning.c_in, torch.ones(5).double(), rtol=1e-12, atol=0)
        torch.testing.assert_close(preconditioning.c_noise, schedule.network_time(t), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_inputs_and_targets_of_an_edm_network_have_unit_variance(schedule: NoiseSchedule) -> None:
    t, process = some_times(schedule), GaussianProcess(schedule)
    alpha_t, sigma_t = schedule.coefficients(t)
    prediction = EDMDenoiser(0.3)
    on_x_0, on_noise = prediction.weights(t, process)
    c_in = prediction.preconditioning(t, process).c_in
    of_input, of_target = c_in**2 * (0.09 * alpha_t**2 + sigma_t**2), 0.09 * on_x_0**2 + on_noise**2
    torch.testing.assert_close(of_input, torch.ones_like(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_target, torch.ones_like(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS[:6], ids=str)
def test_only_edm_scales_the_network_input(prediction: Prediction) -> None:
    x_t, _ = images()
    process = GaussianProcess(CosineSchedule(5))
    preconditioning = prediction.preconditioning(some_times(process.schedule), process)
    x_in, time = preconditioning.inputs(x_t.float())
    assert torch.equal(x_in, x_t.float())
    assert (time.dtype, time.tolist()) == (torch.float32, [0.0, 1.0, 2.0, 3.0, 4.0])


def test_an_edm_network_receives_each_image_divided_by_its_std() -> None:
    x_t, _ = images()
    t = torch.tensor([1e-9, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
    preconditioning = EDMDenoiser(1.0).preconditioning(t, GaussianProcess(EDMSchedule(1e-9)))
    # A factor of 1 for one image must not disable the scaling of the others.
    assert float(torch.as_tensor(preconditioning.c_in)[0]) == 1
    x_in, time = preconditioning.inputs(x_t.float())
    torch.testing.assert_close(x_in, x_t.float() / (t**2 + 1).sqrt().float().view(5, 1, 1, 1))
    torch.testing.assert_close(time, (t.log() / 4).float())


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_coefficients_are_float64_whatever_the_dtype_of_the_times(prediction: Prediction) -> None:
    process, t = GaussianProcess(CosineSchedule(5)), torch.tensor([0.2, 0.6, 1.0])
    coefficients = vars(prediction.preconditioning(t, process)).values()
    for coefficient in (*prediction.weights(t, process), *coefficients, prediction.error_ratio(t, process)):
        assert (coefficient.dtype, coefficient.shape) == (torch.float64, (3,))


NO_SIGNAL = [JSDSchedule(40), CosineSchedule(40, zero_terminal_snr=True), RectifiedFlowSchedule()]


@pytest.mark.parametrize("schedule", [*NO_SIGNAL, JSDSchedule(40).continuous], ids=str)
@pytest.mark.parametrize(("prediction", "name"), [(Epsilon(), "epsilon"), (Score(), "score")])
def test_noise_predictions_are_rejected_if_the_last_alpha_is_0(
    prediction: Prediction, name: str, schedule: NoiseSchedule
) -> None:
    message = f"`prediction` must determine x_0 at .* {type(schedule).__name__}, whose last alpha is 0 .* got {name};"
    with pytest.raises(ValueError, match=message):
        prediction.require(schedule)


@pytest.mark.parametrize("schedule", [*NO_SIGNAL, *CONTINUOUS], ids=str)
@pytest.mark.parametrize("prediction", [X0(), V(), FlowVelocity(), EDMDenoiser()], ids=str)
def test_other_predictions_are_accepted_for_every_schedule(prediction: Prediction, schedule: NoiseSchedule) -> None:
    prediction.require(schedule)
    coefficients = prediction.preconditioning(torch.tensor([schedule.t_max]).double(), GaussianProcess(schedule))
    assert math.isfinite(float(coefficients.c_skip))
    assert math.isfinite(float(coefficients.c_out))


@pytest.mark.parametrize("schedule", [VPSchedule(), VESchedule(), EDMSchedule(), LinearSchedule(1000)], ids=str)
def test_noise_predictions_are_accepted_if_the_last_alpha_is_above_0(schedule: NoiseSchedule) -> None:
    Epsilon().require(schedule)
    Score().require(schedule)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Score().require(LinearSchedule(40, 0.0, 0.3)), "must not be score .* first step .* adds no noise"),
        (lambda: PosteriorMean().require(VPSchedule()), "must have discrete steps .* continuous VPSchedule"),
        (lambda: EDMDenoiser(0.0), "sigma_data must be above 0, got 0.0"),
        (lambda: EDMDenoiser(-1.0), "sigma_data must be above 0, got -1.0"),
    ],
)
def test_invalid_predictions_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_predictions_are_immutable(prediction: Prediction) -> None:
    with pytest.raises(FrozenInstanceError):
        prediction.sigma_data = 0.7  # type: ignore[attr-defined]
