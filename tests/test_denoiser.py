from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition, Network
from diffusion_lab.process import (
    X0,
    CosineSchedule,
    EDMDenoiser,
    EDMSchedule,
    Epsilon,
    GaussianProcess,
    Prediction,
    V,
)
from support.schedule_examples import PREDICTIONS

PROCESS = GaussianProcess(CosineSchedule(1000))
TIMES = torch.tensor([1, 300, 500, 800, 999], dtype=torch.float64) / 1000


class FixedOutput(Network):
    """A network that returns a given output and records its inputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.out_channels = output, output.shape[1]

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.inputs = x_t, time, condition
        return self.output


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_an_output_equal_to_the_target_gives_the_clean_image(prediction: Prediction) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    target = prediction.target(x_0, noise, TIMES, PROCESS)
    denoiser = Denoiser(FixedOutput(target), PROCESS, prediction)
    estimate = denoiser(PROCESS.q_sample(x_0, TIMES, noise), TIMES, Condition())
    torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=2e-3)  # sigma / alpha is 640 at step 999
    assert estimate.variance_output is None


def test_the_second_half_of_the_output_is_the_variance_output() -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    variance_output = torch.randn(5, 3, 8, 6).bfloat16()
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    output = torch.cat([V().target(x_0, noise, TIMES, PROCESS).bfloat16(), variance_output], dim=1)
    estimate = Denoiser(FixedOutput(output), PROCESS, V())(x_t, TIMES, Condition())
    alone = Denoiser(FixedOutput(output[:, :3]), PROCESS, V())(x_t, TIMES, Condition())
    assert torch.equal(estimate.x_0, alone.x_0)
    assert estimate.variance_output is not None
    assert estimate.variance_output.dtype == torch.float32
    assert torch.equal(estimate.variance_output, variance_output.float())


@pytest.mark.parametrize("shape", [(5, 2, 8, 6), (5, 3, 8, 5), (4, 3, 8, 6), (5, 3)])
def test_an_output_of_another_shape_than_the_image_is_refused(shape: tuple[int, ...]) -> None:
    network = FixedOutput(torch.zeros(shape))
    network.out_channels = 3
    message = (
        rf"`forward` of FixedOutput must return .* the shape \[5, 3, 8, 6\] .*, got \[{', '.join(map(str, shape))}\]"
    )
    with pytest.raises(ValueError, match=message):
        Denoiser(network, PROCESS, V())(torch.zeros(5, 3, 8, 6), TIMES, Condition())


def test_between_two_steps_the_network_receives_a_fractional_index() -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    t = (TIMES * 1000 - 0.25) / 1000
    network = FixedOutput(V().target(x_0, noise, t, PROCESS.continuous))
    estimate = Denoiser(network, PROCESS, V())(PROCESS.continuous.q_sample(x_0, t, noise), t, Condition())
    assert network.inputs[1].tolist() == pytest.approx([-0.25, 298.75, 498.75, 798.75, 997.75], abs=1e-3)
    torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=1e-4)


def test_an_edm_network_receives_the_scaled_image_and_the_logarithm_of_sigma() -> None:
    process = GaussianProcess(EDMSchedule())
    sigma = torch.tensor([0.002, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
    x_t, output = torch.randn(2, 5, 3, 8, 6)
    network = FixedOutput(output)
    estimate = Denoiser(network, process, EDMDenoiser(0.5))(x_t, sigma, Condition())
    wide, power = sigma.float().view(5, 1, 1, 1), (sigma**2 + 0.25).float().view(5, 1, 1, 1)
    torch.testing.assert_close(network.inputs[0], x_t / power.sqrt())  # Karras et al. (2022), eq. 7 and Table 1
    torch.testing.assert_close(network.inputs[1], (sigma.log() / 4).float())
    torch.testing.assert_close(estimate.x_0, 0.25 / power * x_t + 0.5 * wide / power.sqrt() * output)


def test_the_network_receives_the_image_the_step_index_and_the_condition() -> None:
    x_t, condition = torch.randn(5, 3, 8, 6), Condition(torch.tensor([3, 1, 4, 1, 5]))
    network = FixedOutput(torch.zeros(5, 3, 8, 6))
    Denoiser(network, PROCESS, Epsilon())(x_t, TIMES, condition)
    assert network.inputs[0] is x_t
    assert network.inputs[1].dtype == torch.float32
    assert network.inputs[1].tolist() == [0, 299, 499, 799, 998]
    assert network.inputs[2] is condition


def test_outputs_in_half_precision_give_estimates_in_float32() -> None:
    x_t = torch.randn(5, 3, 8, 6)
    output = torch.randn(5, 3, 8, 6).bfloat16()
    for prediction in (Epsilon(), X0(), V()):
        exact = Denoiser(FixedOutput(output.float()), PROCESS, prediction)(x_t, TIMES, Condition()).x_0
        estimate = Denoiser(FixedOutput(output), PROCESS, prediction)(x_t, TIMES, Condition()).x_0
        assert estimate.dtype == torch.float32
        assert torch.equal(estimate, exact)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_one_time_for_all_images_equals_one_time_per_image(prediction: Prediction) -> None:
    output, x_t = torch.randn(2, 5, 3, 8, 6)
    network = FixedOutput(output)
    denoiser = Denoiser(network, PROCESS, prediction)
    for t in TIMES:
        for_each = denoiser(x_t, torch.full((5,), float(t), dtype=torch.float64), Condition())
        inputs = network.inputs
        for_all = denoiser(x_t, t.expand(5), Condition())
        torch.testing.assert_close(for_all.x_0, for_each.x_0, rtol=1e-6, atol=1e-6 * float(for_each.x_0.abs().max()))
        assert torch.equal(network.inputs[1], inputs[1])
        torch.testing.assert_close(network.inputs[0], inputs[0])


class Unhashable(Epsilon):
    """A user-defined prediction that is not hashable."""

    __hash__ = None  # type: ignore[assignment]


def test_predictions_that_are_not_hashable_are_supported() -> None:
    output, x_t = torch.randn(2, 5, 3, 8, 6)
    t = TIMES[2].expand(5)
    unhashable, plain = (Denoiser(FixedOutput(output), PROCESS, prediction) for prediction in (Unhashable(), Epsilon()))
    assert torch.equal(unhashable(x_t, t, Condition()).x_0, plain(x_t, t, Condition()).x_0)


def test_a_function_of_two_or_three_arguments_is_a_network() -> None:
    x_0, noise = torch.randn(5, 3, 8, 6), torch.randn(5, 3, 8, 6)
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    received: list[Tensor] = []

    def two(x_t: Tensor, time: Tensor) -> Tensor:
        received.append(time)
        return noise

    def three(x_t: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        assert isinstance(condition, Condition)
        return noise

    for function in (two, three, lambda x, time, condition=None: noise):
        estimate = Denoiser(function, CosineSchedule(1000), Epsilon())(x_t, TIMES)  # type: ignore[arg-type]
        torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=2e-3)
    torch.testing.assert_close(received[0], (TIMES * 1000 - 1).float())  # the step index
    with pytest.raises(ValueError, match=r"`forward` of two must return a tensor of the shape \[5, 3, 8, 5\]"):
        Denoiser(two, PROCESS, Epsilon())(x_t[..., :5], TIMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, PROCESS, Epsilon()), "`network` must be a Network or a function of .*, got 3"),
        ((torch.relu, "cosine", Epsilon()), "`process` must be a diffusion_lab.GaussianProcess, got 'cosine'"),
        (
            (torch.relu, PROCESS, Epsilon),
            "`prediction` must be a diffusion_lab.Prediction.* the class Epsilon instead",
        ),
    ],
)
def test_other_parts_of_a_denoiser_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoiser(*arguments)
