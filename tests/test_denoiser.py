import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition
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


class Given(nn.Module):
    """A network that answers what it was given, in a dtype of its own, and remembers what it was told."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.told = x_t, time, condition
        return self.answer


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_a_network_that_meets_its_target_gives_the_clean_image(prediction: Prediction) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    target = prediction.target(x_0, noise, TIMES, PROCESS)
    denoiser = Denoiser(Given(target), PROCESS, prediction)
    estimate = denoiser(PROCESS.q_sample(x_0, TIMES, noise), TIMES, Condition())
    torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=2e-3)  # noise at the 999th step is 640 times the image
    assert estimate.variance_output is None


def test_the_second_half_of_an_answer_is_kept_for_the_variance() -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    said = torch.randn(5, 3, 8, 6).bfloat16()
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    answer = torch.cat([V().target(x_0, noise, TIMES, PROCESS).bfloat16(), said], dim=1)
    estimate = Denoiser(Given(answer), PROCESS, V())(x_t, TIMES, Condition())
    alone = Denoiser(Given(answer[:, :3]), PROCESS, V())(x_t, TIMES, Condition())
    assert torch.equal(estimate.x_0, alone.x_0)
    assert estimate.variance_output is not None
    assert estimate.variance_output.dtype == torch.float32
    assert torch.equal(estimate.variance_output, said.float())


def test_between_two_steps_the_network_is_told_a_broken_index_and_its_answer_is_read_there() -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    t = (TIMES * 1000 - 0.25) / 1000
    network = Given(V().target(x_0, noise, t, PROCESS.continuous))
    estimate = Denoiser(network, PROCESS, V())(PROCESS.continuous.q_sample(x_0, t, noise), t, Condition())
    assert network.told[1].tolist() == pytest.approx([-0.25, 298.75, 498.75, 798.75, 997.75], abs=1e-3)
    torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=1e-4)


def test_an_edm_network_is_given_the_scaled_image_and_the_logarithm_of_its_noise() -> None:
    process = GaussianProcess(EDMSchedule())
    sigma = torch.tensor([0.002, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
    x_t, answer = torch.randn(2, 5, 3, 8, 6)
    network = Given(answer)
    estimate = Denoiser(network, process, EDMDenoiser(0.5))(x_t, sigma, Condition())
    wide, power = sigma.float().view(5, 1, 1, 1), (sigma**2 + 0.25).float().view(5, 1, 1, 1)
    torch.testing.assert_close(network.told[0], x_t / power.sqrt())  # Karras et al. (2022), eq. 7 and Table 1
    torch.testing.assert_close(network.told[1], (sigma.log() / 4).float())
    torch.testing.assert_close(estimate.x_0, 0.25 / power * x_t + 0.5 * wide / power.sqrt() * answer)


def test_the_network_is_told_the_image_the_index_of_the_step_and_the_condition() -> None:
    x_t, condition = torch.randn(5, 3, 8, 6), Condition(torch.tensor([3, 1, 4, 1, 5]))
    network = Given(torch.zeros(5, 3, 8, 6))
    Denoiser(network, PROCESS, Epsilon())(x_t, TIMES, condition)
    assert network.told[0] is x_t
    assert network.told[1].dtype == torch.float32
    assert network.told[1].tolist() == [0, 299, 499, 799, 998]
    assert network.told[2] is condition


def test_answers_in_half_precision_become_estimates_in_float32() -> None:
    x_t = torch.randn(5, 3, 8, 6)
    answer = torch.randn(5, 3, 8, 6).bfloat16()
    for prediction in (Epsilon(), X0(), V()):
        exact = Denoiser(Given(answer.float()), PROCESS, prediction)(x_t, TIMES, Condition()).x_0
        estimate = Denoiser(Given(answer), PROCESS, prediction)(x_t, TIMES, Condition()).x_0
        assert estimate.dtype == torch.float32
        assert torch.equal(estimate, exact)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_one_time_for_all_images_is_the_same_as_a_time_for_each(prediction: Prediction) -> None:
    answer, x_t = torch.randn(2, 5, 3, 8, 6)
    network = Given(answer)
    denoiser = Denoiser(network, PROCESS, prediction)
    for t in TIMES:
        for_each = denoiser(x_t, torch.full((5,), float(t), dtype=torch.float64), Condition())
        told = network.told
        for_all = denoiser(x_t, t.expand(5), Condition())
        torch.testing.assert_close(for_all.x_0, for_each.x_0, rtol=1e-6, atol=1e-6 * float(for_each.x_0.abs().max()))
        assert torch.equal(network.told[1], told[1])
        torch.testing.assert_close(network.told[0], told[0])


class Unhashable(Epsilon):
    """Somebody's own prediction, whose setting may change."""

    __hash__ = None  # type: ignore[assignment]


def test_a_prediction_without_a_hash_is_answered_too() -> None:
    answer, x_t = torch.randn(2, 5, 3, 8, 6)
    t = TIMES[2].expand(5)
    mine, plain = (Denoiser(Given(answer), PROCESS, prediction) for prediction in (Unhashable(), Epsilon()))
    assert torch.equal(mine(x_t, t, Condition()).x_0, plain(x_t, t, Condition()).x_0)
