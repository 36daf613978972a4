import pytest
import torch
from torch import Tensor

from diffusion_lab.objectives import Denoising, Hybrid, MinSNR, Variational
from diffusion_lab.process import (
    CosineSchedule,
    Epsilon,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedDiagonal,
    LearnedRange,
    Prediction,
    RectifiedFlowSchedule,
    V,
    Variance,
)

T = 40
PROCESS = GaussianProcess(CosineSchedule(T))
TIMES = torch.tensor([1, 2, 13, 30, 39], dtype=torch.float64) / T

PREDICTION = pytest.mark.parametrize("prediction", [Epsilon(), V()], ids=str)
LEARNED = pytest.mark.parametrize("variance", [LearnedRange(), LearnedDiagonal()], ids=str)


def random_example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_0, noise, and network outputs for mean and variance: [5, 3, 8, 6] each, float64."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 256, (5, 3, 8, 6), generator=generator).double() / 127.5 - 1
    noise, mean, variance = torch.randn(3, 5, 3, 8, 6, dtype=torch.float64, generator=generator)
    return x_0, noise, mean.requires_grad_(), variance.requires_grad_()


def loss_of(objective: Denoising | Hybrid | Variational, x_0: Tensor, noise: Tensor, output: Tensor) -> Tensor:
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    return objective(output, x_0, x_t, noise, TIMES, PROCESS)


@PREDICTION
@LEARNED
def test_hybrid_is_the_simple_loss_plus_t_over_1000_times_the_term_of_the_bound(
    prediction: Prediction, variance: Variance
) -> None:
    x_0, noise, mean, variance_output = random_example()
    simple, bound = Denoising(prediction), Variational(prediction, variance)
    output = torch.cat([mean, variance_output], dim=1)
    term = loss_of(bound, x_0, noise, output) / T
    expected = loss_of(simple, x_0, noise, mean) + T / 1000 * term  # Nichol & Dhariwal (2021), eq. 16, code
    torch.testing.assert_close(loss_of(Hybrid(simple, bound), x_0, noise, output), expected, rtol=1e-12, atol=0)


@PREDICTION
@LEARNED
@pytest.mark.parametrize("bound_weight", [0.001, 1.0])
def test_the_bound_trains_only_the_variance(prediction: Prediction, variance: Variance, bound_weight: float) -> None:
    x_0, noise, mean, variance_output = random_example()
    simple, bound = Denoising(prediction), Variational(prediction, variance)
    output = torch.cat([mean, variance_output], dim=1)
    hybrid = loss_of(Hybrid(simple, bound, bound_weight), x_0, noise, output).sum()
    of_mean, of_variance = torch.autograd.grad(hybrid, (mean, variance_output))
    (alone,) = torch.autograd.grad(loss_of(simple, x_0, noise, mean).sum(), mean)
    assert torch.equal(of_mean, alone)
    through_both, of_bound = torch.autograd.grad(loss_of(bound, x_0, noise, output).sum(), (mean, variance_output))
    torch.testing.assert_close(of_variance, bound_weight * of_bound, rtol=1e-9, atol=1e-15)
    assert bool((of_variance != 0).all())
    assert float(through_both.abs().max()) > 1e-3  # the gradient that detach() removes


@PREDICTION
def test_the_bound_has_no_gradient_for_the_mean(prediction: Prediction) -> None:
    x_0, noise, _, variance_output = random_example()
    target = prediction.target(x_0, noise, TIMES, PROCESS).requires_grad_()  # the minimum of the simple loss
    hybrid = Hybrid(Denoising(prediction), Variational(prediction, LearnedRange()))
    loss = loss_of(hybrid, x_0, noise, torch.cat([target + 0 * variance_output, variance_output], dim=1)).sum()
    of_mean, of_variance = torch.autograd.grad(loss, (target, variance_output))
    assert of_mean.abs().max() == 0
    assert float(of_variance.abs().min()) > 0


def test_a_weighting_of_the_simple_loss_does_not_change_the_bound() -> None:
    x_0, noise, mean, variance_output = random_example()
    bound = Variational(V(), LearnedRange())
    output = torch.cat([mean, variance_output], dim=1)
    bounds = [
        loss_of(Hybrid(simple, bound, 0.5), x_0, noise, output) - loss_of(simple, x_0, noise, mean)
        for simple in (Denoising(V()), Denoising(V(), MinSNR()))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-9, atol=1e-12)


def test_loss_of_bfloat16_outputs_is_computed_in_float32() -> None:
    x_0, noise, mean, variance_output = random_example()
    half = torch.cat([mean, variance_output], dim=1).detach().bfloat16()
    hybrid = Hybrid(Denoising(V()), Variational(V(), LearnedRange()))
    losses = [loss_of(hybrid, x_0.float(), noise.float(), output) for output in (half, half.float())]
    assert losses[0].dtype == torch.float32
    assert torch.equal(*losses)


def test_a_bound_of_another_prediction_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"`bound` must have the prediction of `simple` \(V\(\)\), got Epsilon\(\)"):
        Hybrid(Denoising(V()), Variational(Epsilon(), LearnedRange()))


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=str)
def test_a_fixed_variance_is_rejected(variance: Variance) -> None:
    message = (
        "`variance` must be LearnedRange or LearnedDiagonal for the objective Hybrid.* "
        f"got the fixed variance {type(variance).__name__}"
    )
    with pytest.raises(ValueError, match=message):
        Hybrid(Denoising(V()), Variational(V(), variance))


def test_a_negative_bound_weight_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"bound_weight must be at least 0, got -0.001"):
        Hybrid(Denoising(V()), Variational(V(), LearnedRange()), -0.001)
    Hybrid(Denoising(V()), Variational(V(), LearnedRange()), 0.0)


def test_hybrid_requires_discrete_steps_and_twice_the_channels() -> None:
    hybrid = Hybrid(Denoising(V()), Variational(V(), LearnedRange()))
    hybrid.require(PROCESS.schedule, 3, 6)
    with pytest.raises(ValueError, match=r"`schedule` must have discrete steps .* RectifiedFlowSchedule"):
        hybrid.require(RectifiedFlowSchedule(), 3, 6)
    with pytest.raises(
        ValueError, match=r"`out_channels` of the network must be 6 for a learned variance \(twice the 3 .* got 3"
    ):
        hybrid.require(PROCESS.schedule, 3, 3)
