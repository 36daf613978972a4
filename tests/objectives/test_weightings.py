import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from diffusion_lab.objectives import (
    P2,
    Constant,
    Denoising,
    EDMWeighting,
    MinSNR,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    unweighted,
)
from diffusion_lab.process import X0, EDMDenoiser, Epsilon, GaussianProcess, Prediction, V, VPSchedule
from support.schedule_examples import PREDICTIONS, VARIED, accepted, some_times

SNR = [0.0, 0.25, 1.0, 4.0, 16.0]
WEIGHTINGS = [Constant(), MinSNR(), SoftMinSNR(), TruncatedSNR(), P2(), P2(0.5, 0.3), EDMWeighting(), EDMWeighting(1.0)]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Constant(), [1.0] * 5),
        (MinSNR(), [0.0, 0.25, 1.0, 4.0, 5.0]),  # Hang et al. (2023): gamma = 5
        (MinSNR(2.0), [0.0, 0.25, 1.0, 2.0, 2.0]),
        (SoftMinSNR(), [0.0, 1 / 4.25, 4 / 5, 2.0, 64 / 20]),  # SNR gamma / (SNR + gamma), gamma = 4
        (SoftMinSNR(1.0), [0.0, 0.2, 0.5, 0.8, 16 / 17]),
        (TruncatedSNR(), [1.0, 1.0, 1.0, 4.0, 16.0]),
        (P2(), [0.0, 0.2, 0.5, 0.8, 16 / 17]),
        (P2(3.0, 0.5), [0.0, 0.25 / math.sqrt(3.25), 0.5, 4 / math.sqrt(7), 16 / math.sqrt(19)]),
        (P2(3.0, 0.0), SNR),  # weight 1 for the error of the noise
        (EDMWeighting(), [4.0, 4.25, 5.0, 8.0, 20.0]),  # (sigma^2 + 0.25) / (0.5 sigma)^2
        (EDMWeighting(2.0), [0.25, 0.5, 1.25, 4.25, 16.25]),
    ],
    ids=str,
)
def test_weights_of_the_x_0_error_are_those_of_the_papers(weighting: Weighting, expected: list[float]) -> None:
    weight = weighting(torch.tensor(SNR, dtype=torch.float64))
    assert weight.dtype == torch.float64
    assert weight.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weighting", "limit"), [(Constant(), 1.0), (MinSNR(), 5.0), (SoftMinSNR(), 4.0), (P2(), 1.0), (P2(1.0, 2.0), 0.0)],
    ids=str,
)  # fmt: skip
def test_weights_for_infinite_snr_are_the_limits(weighting: Weighting, limit: float) -> None:
    assert weighting(torch.tensor([math.inf], dtype=torch.float64)).tolist() == [limit]


@pytest.mark.parametrize("snr", [0.04, 0.9, 1.1, 4.0, 30.0])
@pytest.mark.parametrize(
    ("prediction", "divisor"),
    [(Epsilon(), lambda snr: snr), (X0(), lambda snr: 1), (V(), lambda snr: snr + 1)],
    ids=["epsilon", "x_0", "v"],
)
def test_min_snr_weights_are_divided_by_snr_for_epsilon_1_for_x_0_and_snr_plus_1_for_v(
    prediction: Prediction, divisor: Callable[[float], float], snr: float
) -> None:
    process = GaussianProcess(VPSchedule())
    t = process.schedule.at_log_snr(torch.full((5,), math.log(snr), dtype=torch.float64))
    output = torch.full((5, 3, 8, 6), 2.0, dtype=torch.float64)
    zeros = torch.zeros_like(output)
    loss = Denoising(prediction, MinSNR(3.0))(output, zeros, zeros, zeros, t, process)
    assert loss.tolist() == pytest.approx([4 * min(snr, 3.0) / divisor(snr)] * 5, rel=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_weights_apply_to_the_x_0_error_in_value_and_gradient(prediction: Prediction, weighting: Weighting) -> None:
    x_0, noise, output = torch.randn(3, 5, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output.requires_grad_()
    for schedule in VARIED:
        if not accepted(prediction, schedule):
            continue
        process, t = GaussianProcess(schedule), some_times(schedule)
        alpha_t, sigma_t = schedule.coefficients(t)
        x_t = process.q_sample(x_0, t, noise)
        loss = Denoising(prediction, weighting)(output, x_0, x_t, noise, t, process)
        error = (prediction.to_x_0(output, x_t, t, process) - x_0).square().mean(dim=(1, 2, 3))
        expected = weighting((alpha_t / sigma_t) ** 2) * error
        assert_same(loss, expected)
        gradients = [torch.autograd.grad(value.sum(), output)[0] for value in (loss, expected)]
        assert_same(*gradients)


def test_edm_weights_are_1_for_the_error_of_an_edm_network() -> None:
    x_0, noise, output = torch.randn(3, 5, 3, 8, 6, dtype=torch.float64)
    for schedule in VARIED:
        process, t = GaussianProcess(schedule), some_times(schedule)
        x_t = process.q_sample(x_0, t, noise)
        losses = [
            Denoising(EDMDenoiser(0.7), weighting)(output, x_0, x_t, noise, t, process)
            for weighting in (EDMWeighting(0.7), None)
        ]
        assert_same(*losses)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_weightings_are_immutable(weighting: Weighting) -> None:
    with pytest.raises(FrozenInstanceError):
        weighting.gamma = 0.7  # type: ignore[attr-defined]


def test_no_weighting_is_none() -> None:
    assert unweighted() is None  # type: ignore[func-returns-value]
    assert Denoising(V()).weighting is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinSNR(0.0), "gamma must be above 0, got 0.0"),
        (lambda: SoftMinSNR(-1.0), "gamma must be above 0, got -1.0"),
        (lambda: P2(k=0.0), "k must be above 0, got 0.0"),
        (lambda: P2(gamma=-0.1), "gamma must be at least 0, got -0.1"),
        (lambda: EDMWeighting(0.0), "sigma_data must be above 0, got 0.0"),
    ],
)
def test_invalid_settings_are_rejected(build: Callable[[], Weighting], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
