import pytest
import torch

from diffusion_lab.objectives import Constant, Denoising, EDMWeighting, MinSNR, TruncatedSNR, Weighting
from diffusion_lab.process import (
    X0,
    CosineSchedule,
    Epsilon,
    GaussianProcess,
    LinearSchedule,
    Prediction,
    V,
    VPSchedule,
)
from support.schedule_examples import PREDICTIONS

PROCESS = GaussianProcess(CosineSchedule(10))
TIMES = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V()], ids=str)
def test_loss_of_an_output_of_0_for_a_target_of_unit_variance_is_1(prediction: Prediction) -> None:
    x_0, noise = torch.randn(2, 5, 3, 80, 60, generator=torch.Generator().manual_seed(0))
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    loss = Denoising(prediction)(torch.zeros_like(x_0), x_0, x_t, noise, TIMES, PROCESS)
    assert loss.shape == (5,)
    assert loss.tolist() == pytest.approx([1.0] * 5, abs=0.05)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_loss_is_the_mean_squared_error_of_each_image(prediction: Prediction) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6, dtype=torch.float64)
    target = prediction.target(x_0, noise, TIMES, PROCESS)
    error = torch.tensor([0.0, 1.0, 2.0, 3.0, -4.0]).view(5, 1, 1, 1)
    loss = Denoising(prediction)(target + error, x_0, PROCESS.q_sample(x_0, TIMES, noise), noise, TIMES, PROCESS)
    assert loss.tolist() == pytest.approx([0, 1, 4, 9, 16], abs=1e-9)


def test_loss_of_bfloat16_outputs_is_computed_in_float32() -> None:
    output = torch.full((5, 3, 8, 6), 1 + 2**-7, dtype=torch.bfloat16)
    zeros = torch.zeros_like(output)
    for objective in (Denoising(X0()), Denoising(X0(), Constant())):
        loss = objective(output, zeros, zeros, zeros, TIMES, PROCESS)
        assert loss.dtype == torch.float32
        assert loss.tolist() == pytest.approx([(1 + 2**-7) ** 2] * 5, rel=1e-6)  # bfloat16 would round to 1 + 2^-6


def test_loss_of_float64_outputs_stays_in_float64() -> None:
    zeros = torch.zeros(5, 3, 8, 6, dtype=torch.float64)
    assert Denoising(X0(), Constant())(zeros, zeros, zeros, zeros, TIMES, PROCESS).dtype == torch.float64


@pytest.mark.parametrize("out_channels", [1, 4, 6])
def test_a_network_with_other_channels_than_the_image_is_rejected(out_channels: int) -> None:
    message = f"`out_channels` of the network must be 3 .* for the objective Denoising, got {out_channels}; a learned"
    with pytest.raises(ValueError, match=message):
        Denoising(Epsilon()).require(CosineSchedule(10), 3, out_channels)


def test_a_network_with_the_channels_of_the_image_is_accepted_for_any_schedule() -> None:
    for schedule in (CosineSchedule(10), VPSchedule()):
        Denoising(Epsilon()).require(schedule, 3, 3)


@pytest.mark.parametrize("weighting", [TruncatedSNR(), EDMWeighting()], ids=str)
def test_a_weighting_that_is_infinite_at_a_first_step_without_noise_is_rejected(weighting: Weighting) -> None:
    with pytest.raises(ValueError, match=r"`weighting` must be None, Constant, MinSNR, .* adds no noise, got"):
        Denoising(Epsilon(), weighting).require(LinearSchedule(50, 0.0, 0.98), 3, 3)
    Denoising(Epsilon(), MinSNR()).require(LinearSchedule(50, 0.0, 0.98), 3, 3)
    Denoising(Epsilon(), weighting).require(LinearSchedule(50), 3, 3)
