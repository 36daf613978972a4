import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.process import X0, CosineSchedule, Epsilon, GaussianProcess, LinearSchedule, Prediction, V

PREDICTIONS = [Epsilon(), X0(), V()]


def test_targets_are_those_of_the_papers() -> None:
    x_0, noise = torch.full((2, 3, 8, 6), 0.5), torch.full((2, 3, 8, 6), -2.0)
    alpha_t, sigma_t = torch.tensor([0.6, 0.8]).view(2, 1, 1, 1), torch.tensor([0.8, 0.6]).view(2, 1, 1, 1)
    assert torch.equal(Epsilon().target(x_0, noise, alpha_t, sigma_t), noise)  # Ho et al. (2020), eq. 12
    assert torch.equal(X0().target(x_0, noise, alpha_t, sigma_t), x_0)
    v = V().target(x_0, noise, alpha_t, sigma_t)  # Salimans & Ho (2022), appendix D: 0.6 * -2 - 0.8 * 0.5 = -1.6
    torch.testing.assert_close(v, torch.tensor([-1.6, -1.9]).view(2, 1, 1, 1).expand(2, 3, 8, 6))


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
@given(
    process=st.sampled_from([GaussianProcess(LinearSchedule(40, 0.0, 0.3)), GaussianProcess(CosineSchedule(40))]),
    steps=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_a_perfect_answer_stands_for_the_clean_image(
    prediction: Prediction, process: GaussianProcess, steps: list[int], seed: int
) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    t = torch.tensor(steps, dtype=torch.float64) / 40
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    target = prediction.target(x_0, noise, alpha_t, sigma_t)
    x_t = process.q_sample(x_0, t, noise)
    torch.testing.assert_close(prediction.to_x_0(target, x_t, alpha_t, sigma_t), x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
@given(alpha=st.floats(0.1, 3), sigma=st.floats(0, 80))
def test_a_perfect_answer_stands_for_the_clean_image_when_variance_grows(
    prediction: Prediction, alpha: float, sigma: float
) -> None:
    x_0, noise = torch.randn(2, 5, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha_t, sigma_t = torch.full((5, 1, 1, 1), alpha).double(), torch.full((5, 1, 1, 1), sigma).double()
    target = prediction.target(x_0, noise, alpha_t, sigma_t)
    answer = prediction.to_x_0(target, alpha_t * x_0 + sigma_t * noise, alpha_t, sigma_t)
    torch.testing.assert_close(answer, x_0, rtol=1e-9, atol=1e-9)
