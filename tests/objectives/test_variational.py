"""The terms of the bound compared with an implementation of Ho et al. (2020) based on torch.distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffusion_lab.networks import Condition
from diffusion_lab.objectives import Variational, bound_term, prior_term
from diffusion_lab.objectives.variational import discretized_log_likelihood, gaussian_divergence
from diffusion_lab.process import (
    X0,
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    JSDSchedule,
    LearnedDiagonal,
    LearnedRange,
    LinearSchedule,
    NoiseSchedule,
    PosteriorMean,
    Prediction,
    RectifiedFlowSchedule,
    TableSchedule,
    V,
    Variance,
    VESchedule,
    VPSchedule,
)
from support.oracles import GaussianOracle
from support.schedule_examples import CONTINUOUS

T = 9
SCHEDULE = LinearSchedule(T, 1e-2, 0.5)
PROCESS = GaussianProcess(SCHEDULE)
LEVELS = (torch.arange(256).double() / 127.5) - 1
VARIANCES: list[Variance] = [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()]


def random_images(*shape: int) -> Tensor:
    """Return random 8-bit images that contain the first and the last level."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    levels[:, 0, 0, :3] = torch.tensor([0, 255, 1])
    return levels.double() / 127.5 - 1


def cdf(gaussian: Normal, x: Tensor) -> Tensor:
    probability: Tensor = gaussian.cdf(x)  # type: ignore[no-untyped-call]
    return probability


def reference_term(
    x_0: Tensor, x_t: Tensor, predicted_noise: Tensor, variance_output: Tensor, variance: Variance, k: int
) -> Tensor:
    """Return term k = 1..T of the bound for a predicted noise, bits per dimension: [] (Ho et al. 2020, section 3)."""
    beta = torch.linspace(1e-2, 0.5, T, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1).double(), (1 - beta).cumprod(0)])
    tilde = beta * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    small, large = torch.cat([tilde[1:2], tilde[1:]])[k - 1], beta[k - 1]
    log_variance = {
        FixedSmall: small.log(),
        FixedLarge: (small if k == 1 else large).log(),
        LearnedRange: (variance_output + 1) / 2 * large.log() + (1 - variance_output) / 2 * small.log(),
        LearnedDiagonal: variance_output,
    }[type(variance)]
    std = (log_variance / 2).exp().expand_as(x_0)
    # Ho et al. (2020), eq. 11
    mean = (x_t - beta[k - 1] / (1 - alpha_bar[k]).sqrt() * predicted_noise) / (1 - beta[k - 1]).sqrt()
    if k == 1:
        upper = torch.where(x_0 == 1, 1.0, cdf(Normal(mean, std), x_0 + 1 / 255))  # eq. 13
        lower = torch.where(x_0 == -1, 0.0, cdf(Normal(mean, std), x_0 - 1 / 255))
        return -(upper - lower).log2().mean()
    on_x_0 = alpha_bar[k - 1].sqrt() * beta[k - 1] / (1 - alpha_bar[k])  # eq. 7
    on_x_t = (1 - beta[k - 1]).sqrt() * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
    true = Normal(on_x_0 * x_0 + on_x_t * x_t, tilde[k - 1].sqrt().expand_as(x_0))
    return kl_divergence(true, Normal(mean, std)).mean() / math.log(2)


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V(), PosteriorMean()], ids=str)
def test_terms_are_those_of_ho_et_al_and_the_mean_loss_over_all_steps_is_the_bound(
    variance: Variance, prediction: Prediction
) -> None:
    x_0 = random_images(T, 3, 8, 6)
    noise, predicted_noise, variance_output = torch.randn(3, T, 3, 8, 6, dtype=torch.float64)
    x_t = PROCESS.q_sample(x_0, SCHEDULE.steps, noise)
    alpha_t, sigma_t = PROCESS.coefficients(SCHEDULE.steps, like=x_0)
    output = prediction.target((x_t - sigma_t * predicted_noise) / alpha_t, predicted_noise, SCHEDULE.steps, PROCESS)
    if variance.learned:
        output = torch.cat([output, variance_output], dim=1)
    loss = Variational(prediction, variance)(output, x_0, x_t, noise, SCHEDULE.steps, PROCESS)
    terms = [reference_term(x_0[k], x_t[k], predicted_noise[k], variance_output[k], variance, k + 1) for k in range(T)]
    assert loss.shape == (T,)
    torch.testing.assert_close(loss, T * torch.stack(terms), rtol=1e-8, atol=1e-8)
    assert float(loss.mean()) == pytest.approx(float(sum(terms)), rel=1e-8)


def test_terms_in_float32_are_those_in_float64() -> None:
    process = GaussianProcess(CosineSchedule(1000))
    t = torch.tensor([1, 2, 300, 999, 1000], dtype=torch.float64) / 1000
    x_0, noise = random_images(5, 3, 8, 6), torch.randn(5, 3, 8, 6, dtype=torch.float64)
    x_t, estimate = process.q_sample(x_0, t, noise), x_0 + 0.03 * torch.randn(5, 3, 8, 6, dtype=torch.float64)
    terms = []
    for dtype in (torch.float32, torch.float64):
        images = [image.to(dtype) for image in (x_0, estimate, x_t)]
        s = process.schedule.previous(t)
        log_variance = FixedSmall().log_variance(process, s, t, like=images[0], output=None)
        terms.append(bound_term(images[0], images[1], images[2], log_variance, s, t, process))
        assert terms[-1].dtype == dtype
    torch.testing.assert_close(terms[0].double(), terms[1], rtol=1e-3, atol=1e-7)


def test_loss_of_bfloat16_outputs_is_computed_in_float32() -> None:
    x_0, noise = random_images(T, 3, 8, 6).float(), torch.randn(T, 3, 8, 6)
    x_t = PROCESS.q_sample(x_0, SCHEDULE.steps, noise)
    half = torch.randn(T, 6, 8, 6).bfloat16()
    losses = [
        Variational(V(), LearnedRange())(output, x_0, x_t, noise, SCHEDULE.steps, PROCESS)
        for output in (half, half.float())
    ]
    assert losses[0].dtype == torch.float32
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(50), CosineSchedule(40), VPSchedule(), EDMSchedule(0.002, 50.1), VESchedule()]
)
def test_prior_term_is_the_divergence_of_the_last_marginal_from_the_prior_of_sampling(
    schedule: NoiseSchedule,
) -> None:
    process, x_0 = GaussianProcess(schedule), random_images(5, 3, 8, 6)
    alpha_t, sigma_t = schedule.coefficients(torch.tensor([schedule.t_max], dtype=torch.float64))
    start = 1.0 if isinstance(schedule, TableSchedule | VPSchedule) else float(sigma_t)
    last = Normal(alpha_t * x_0, sigma_t.expand_as(x_0))
    expected = kl_divergence(last, Normal(torch.zeros_like(x_0), torch.full_like(x_0, start))) / math.log(2)
    torch.testing.assert_close(prior_term(x_0, process), expected.mean(dim=(1, 2, 3)), rtol=1e-10, atol=1e-15)


def test_prior_term_is_0_if_the_last_alpha_is_0() -> None:
    for schedule in (JSDSchedule(9), RectifiedFlowSchedule(), CosineSchedule(9, zero_terminal_snr=True)):
        assert prior_term(random_images(5, 3, 8, 6), GaussianProcess(schedule)).tolist() == [0.0] * 5


@given(st.floats(-3, 3), st.floats(-9, 3), st.floats(-9, 3))
def test_divergence_is_that_of_two_gaussians(between: float, log_variance_q: float, log_variance_p: float) -> None:
    q, p = (torch.tensor([value], dtype=torch.float64) for value in (log_variance_q, log_variance_p))
    found = gaussian_divergence(torch.tensor([between], dtype=torch.float64), q, p)
    expected = kl_divergence(Normal(torch.tensor([between]).double(), (q / 2).exp()), Normal(0.0, (p / 2).exp()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_divergence_of_nearly_equal_gaussians_is_precise() -> None:
    zero, small = torch.zeros(1).double(), torch.full((1,), 1e-7).double()
    assert float(gaussian_divergence(zero, zero, zero)) == 0
    assert float(gaussian_divergence(zero, small, zero)) == pytest.approx(2.5e-15, rel=0.1)


@given(mean=st.floats(-3, 3), log_std=st.floats(-6, 1))
def test_probabilities_of_the_256_levels_sum_to_1(mean: float, log_std: float) -> None:
    log_likelihood = discretized_log_likelihood(LEVELS, torch.tensor(mean).double(), torch.tensor(log_std))
    assert float(log_likelihood.exp().sum()) == pytest.approx(1, abs=1e-5)


@given(st.integers(0, 255), st.floats(-1.2, 1.2), st.floats(-4, 1))
def test_likelihood_of_a_level_is_the_probability_between_its_half_levels(
    level: int, mean: float, log_std: float
) -> None:
    x = LEVELS[level : level + 1]
    gaussian = Normal(torch.tensor([mean], dtype=torch.float64), math.exp(log_std))
    upper = torch.ones(1).double() if level == 255 else cdf(gaussian, x + 1 / 255)
    lower = torch.zeros(1).double() if level == 0 else cdf(gaussian, x - 1 / 255)
    found = discretized_log_likelihood(x, gaussian.mean, torch.tensor([log_std], dtype=torch.float64))
    assert float(found.exp()) == pytest.approx(float(upper - lower), rel=1e-6, abs=1e-14)


def test_likelihood_far_from_the_mean_is_the_gaussian_tail() -> None:
    x, mean, std = LEVELS[100:101], torch.tensor([0.6]).double(), 0.01
    nearest = (0.6 - (float(x) + 1 / 255)) / std
    # The asymptotic expansion of the tail probability, with relative error 1 / nearest^2
    tail = -(nearest**2) / 2 - math.log(nearest * math.sqrt(2 * math.pi))
    found = discretized_log_likelihood(x, mean, torch.tensor([math.log(std)]).double())
    assert float(found) == pytest.approx(tail, abs=2e-3)
    assert float(found) < -3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_std", [-14.0, -7.0, -5.0, -3.0, 0.0, 3.0, 17.0])
@pytest.mark.parametrize("mean", [-1e4, -100.0, -3.0, -1.0, 0.0, 0.3, 1.0, 3.0, 100.0, 1e4])
def test_likelihoods_and_their_gradients_are_finite_at_all_levels_for_any_gaussian(
    mean: float, log_std: float, dtype: torch.dtype
) -> None:
    means = torch.full((256,), mean, dtype=dtype, requires_grad=True)
    log_stds = torch.full((256,), log_std, dtype=dtype, requires_grad=True)
    log_likelihood = discretized_log_likelihood(LEVELS.to(dtype), means, log_stds)
    assert bool(log_likelihood.isfinite().all())
    assert bool((log_likelihood <= 0).all())
    for gradient in torch.autograd.grad(log_likelihood.sum(), (means, log_stds)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("mean", "log_std"), [(0.3, -4.9), (-1.5, -4.9), (0.9, -6.1), (3.0, -6.1), (30.0, -6.1)])
def test_gradients_of_likelihoods_in_float32_are_those_in_float64(mean: float, log_std: float) -> None:
    # -4.9 and -6.1 are the log_std of the first steps of LinearSchedule(1000) and CosineSchedule(4000).
    gradients = []
    for dtype in (torch.float32, torch.float64):
        means = torch.full((256,), mean, dtype=dtype, requires_grad=True)
        value = discretized_log_likelihood(LEVELS.to(dtype), means, torch.full((256,), log_std, dtype=dtype))
        gradients.append(torch.autograd.grad(value.sum(), means)[0].double())
    scale = float(gradients[1].abs().max())
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-3 * scale


def test_the_bound_of_gaussian_data_with_the_exact_denoiser_is_the_closed_form() -> None:
    mean, std = 0.1, 0.2
    x_0, noise = uncorrelated(2, 1, 3, 80, 60)
    x_0 = mean + std * x_0
    alpha_bar = SCHEDULE.alpha_bar
    previous = torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    # Variance of x_0 given x_t, and of x_{t-1} given both. The first value of the latter is that of the decoder.
    posterior = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
    small = SCHEDULE.betas * (1 - previous) / (1 - alpha_bar)
    on_x_0 = previous.sqrt() * SCHEDULE.betas / (1 - alpha_bar)
    expected = 0.5 * on_x_0[1:] ** 2 * posterior[1:] / small[1:] / math.log(2)  # L_1, ..., L_{T-1}
    # The Gaussian is much wider than a level. x_0 is not quantized, which eq. 13 allows.
    decoder = 0.5 * math.log(2 * math.pi * small[1]) + posterior[0] / (2 * small[1]) - math.log(2 / 255)
    power = alpha_bar[-1] * (mean**2 + std**2)
    prior = 0.5 * (power - alpha_bar[-1] - (1 - alpha_bar[-1]).log())

    terms = []
    for k in range(T):
        t = SCHEDULE.steps[k : k + 1]
        s, x_t = SCHEDULE.previous(t), PROCESS.q_sample(x_0, t, noise)
        estimate = GaussianOracle(PROCESS, mean, std)(x_t, t, Condition()).x_0
        log_variance = FixedSmall().log_variance(PROCESS, s, t, like=x_0, output=None)
        terms.append(float(bound_term(x_0, estimate, x_t, log_variance, s, t, PROCESS)))
    assert terms[1:] == pytest.approx(expected.tolist(), rel=1e-9)
    assert float(prior_term(x_0, PROCESS)) == pytest.approx(float(prior) / math.log(2), rel=1e-9)
    total = sum(terms) + float(prior_term(x_0, PROCESS))
    closed_form = float(expected.sum()) + float(decoder + prior) / math.log(2)
    assert total == pytest.approx(closed_form, abs=1e-4)


def uncorrelated(*shape: int) -> Tensor:
    """Return normal samples, float64, whose sample mean is exactly 0 and whose sample covariance is the identity."""
    samples = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).flatten(1)
    samples = samples - samples.mean(dim=1, keepdim=True)
    white: Tensor = torch.linalg.solve(torch.linalg.cholesky(samples.cov(correction=0)), samples)
    return white.view(shape)


@pytest.mark.parametrize("schedule", [*CONTINUOUS, SCHEDULE.continuous], ids=str)
def test_continuous_schedules_are_rejected(schedule: NoiseSchedule) -> None:
    message = f"`schedule` must have discrete steps .* got the continuous {type(schedule).__name__}"
    with pytest.raises(ValueError, match=message):
        Variational(Epsilon(), FixedSmall()).require(schedule, 3, 3)


@pytest.mark.parametrize(
    ("variance", "out_channels", "message"),
    [
        (FixedSmall(), 6, "`out_channels` of the network must be 3 for a fixed variance, got 6"),
        (FixedLarge(), 4, "`out_channels` of the network must be 3 for a fixed variance, got 4"),
        (LearnedRange(), 3, "`out_channels` of the network must be 6 for a learned variance .twice the 3 .*, got 3"),
        (
            LearnedDiagonal(),
            9,
            "`out_channels` of the network must be 6 for a learned variance .twice the 3 .*, got 9",
        ),
    ],
)
def test_networks_with_unsuitable_channels_are_rejected(variance: Variance, out_channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variational(Epsilon(), variance).require(SCHEDULE, 3, out_channels)


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_networks_with_suitable_channels_are_accepted(variance: Variance) -> None:
    Variational(Epsilon(), variance).require(SCHEDULE, 3, 6 if variance.learned else 3)
