import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition
from diffusion_lab.process import X0, CosineSchedule, Epsilon, GaussianProcess, Prediction, V

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


@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V()], ids=str)
def test_a_network_that_meets_its_target_gives_the_clean_image(prediction: Prediction) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6)
    target = prediction.target(x_0, noise, *PROCESS.coefficients(TIMES, like=x_0))
    denoiser = Denoiser(Given(target), PROCESS, prediction)
    estimate = denoiser(PROCESS.q_sample(x_0, TIMES, noise), TIMES, Condition())
    torch.testing.assert_close(estimate.x_0, x_0, rtol=0, atol=2e-3)  # noise at the 999th step is 640 times the image
    assert estimate.log_variance is None


def test_the_network_is_told_the_image_the_index_of_the_step_and_the_condition() -> None:
    x_t, condition, network = torch.randn(5, 3, 8, 6), Condition(torch.tensor([3, 1, 4, 1, 5])), Given(torch.zeros(1))
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
