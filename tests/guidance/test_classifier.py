"""Classifier guidance in every sampler, against exact distributions and the formulas of the paper."""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser, Estimate
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import ClassifierGuidance, Guidance, Strength
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.networks import ClassifierNetwork, Condition, HalfUNet, Labels
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedRange,
    LinearSchedule,
    NoiseSchedule,
    Variance,
)
from diffusion_lab.process.respaced import Respaced
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import (
    DDIM,
    Ancestral,
    Clipping,
    DynamicClipping,
    NoClipping,
    StaticClipping,
    UniformTimes,
)
from support.every_sampler import SAMPLERS, Case, fingerprint_differences
from support.networks import NetworkFunction
from support.oracles import MixtureOracle, RecordedNoise
from support.representatives import with_representatives
from support.small_runs import small_module

ONE_OF_EACH_KIND = (
    "ancestral, fixed large", "ddim, eta 0", "heun", "dpm_solver_sde", "unipc, order 2", "predictor_corrector, small",
)  # fmt: skip


@dataclass(frozen=True)
class ModeClassifier:
    """The exact classifier of the mode of a mixture. The label of an image is the mode of all its pixels."""

    oracle: MixtureOracle
    num_classes: int = 3

    def gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().double().requires_grad_()
            log_probabilities = self.oracle.log_joint(x_t, t).log_softmax(0)  # [modes, B, C, H, W]
            log_likelihood = log_probabilities.gather(0, label.view(1, -1, 1, 1, 1).expand(1, *x_t.shape)).sum()
            return torch.autograd.grad(log_likelihood, x_t)[0].float()


@pytest.mark.parametrize("case", with_representatives(SAMPLERS, ONE_OF_EACH_KIND))
def test_an_exact_classifier_guides_an_unconditional_denoiser_to_the_class(case: Case) -> None:
    oracle = MixtureOracle(GaussianProcess(CosineSchedule()))
    guided = ClassifierGuidance(oracle, ModeClassifier(oracle), 1.0, Labels())  # type: ignore[arg-type]
    sampler = case.build(oracle.process, num_steps=case.num_steps, clipping=NoClipping())
    label = torch.arange(6) % 3
    images = sampler.sample(guided, ImageNoise(range(6), (3, 24, 12)), Condition(label))
    for mode in range(3):
        of_mode = images[label == mode]
        assert float(of_mode.mean()) == pytest.approx(oracle.means[mode], abs=0.03)
        assert float(of_mode.std()) == pytest.approx(oracle.stds[mode], abs=0.03)


def denoise(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
    return Estimate((1.5 * x_t).sin() * 1.2, (x_t / 2).cos())


class Cosine:
    """A classifier with a known gradient."""

    num_classes = 3

    def gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return (x_t / 3 + label.view(-1, 1, 1, 1)).cos()


@pytest.mark.parametrize("variance", [FixedLarge(), LearnedRange()])
def test_ancestral_sampling_shifts_the_mean_of_its_step_by_variance_times_gradient(
    variance: FixedLarge | LearnedRange,
) -> None:
    process, label = GaussianProcess(LinearSchedule(20)), torch.tensor([0, 2])
    sampler = Ancestral(process, variance=variance, clipping=StaticClipping())
    guided = ClassifierGuidance(denoise, Cosine(), 2.0, Labels())  # type: ignore[arg-type]
    found = sampler.sample(guided, ImageNoise(range(2), (1, 4, 6)), Condition(label))

    # Dhariwal & Nichol (2021), algorithm 1, with the gradient at x_t as in their code, and no noise in the last step.
    noise = ImageNoise(range(2), (1, 4, 6))
    x = noise.draw()
    for k in range(20, 0, -1):
        t, s = (torch.full((2,), step / 20, dtype=torch.float64) for step in (k, k - 1))
        estimate = denoise(x, t, Condition())
        mean, _ = process.q_posterior(estimate.x_0.clamp(-1, 1), x, s, t)
        variance_t = variance.log_variance(process, s, t, like=x, output=estimate.variance_output).exp()
        mean = mean + variance_t * 2.0 * Cosine().gradient(x, t, label)
        x = mean + variance_t.sqrt() * noise.draw() if k > 1 else mean
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_ddim_shifts_the_noise_by_sigma_times_gradient() -> None:
    process, label = GaussianProcess(LinearSchedule(20)), torch.tensor([0, 2])
    guided = ClassifierGuidance(denoise, Cosine(), 2.0, Labels())  # type: ignore[arg-type]
    sampler = DDIM(process, num_steps=20, clipping=StaticClipping())
    found = sampler.sample(guided, ImageNoise(range(2), (1, 4, 6)), Condition(label))

    # Dhariwal & Nichol (2021), algorithm 2.
    x = ImageNoise(range(2), (1, 4, 6)).draw()
    for k in range(20, 0, -1):
        t, s = (torch.full((2,), step / 20, dtype=torch.float64) for step in (k, k - 1))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.coefficients(t, like=x), process.coefficients(s, like=x)
        noise = (x - alpha_t * denoise(x, t, Condition()).x_0.clamp(-1, 1)) / sigma_t
        noise = noise - sigma_t * 2.0 * Cosine().gradient(x, t, label)
        x_0 = ((x - sigma_t * noise) / alpha_t).clamp(-1, 1)  # clipped again
        x = alpha_s * x_0 + sigma_s * (x - alpha_t * x_0) / sigma_t
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clipping", [StaticClipping(after_guidance=False), DynamicClipping(1.0, after_guidance=False)])
def test_ddim_of_algorithm_2_does_not_clip_again_after_the_gradient(clipping: Clipping) -> None:
    process, label = GaussianProcess(LinearSchedule(20, 0.01, 0.3)), torch.tensor([0, 2])
    guided = ClassifierGuidance(denoise, Cosine(), 2.0, Labels())  # type: ignore[arg-type]
    sampler = DDIM(process, num_steps=20, clipping=clipping)
    found = sampler.sample(guided, ImageNoise(range(2), (1, 4, 6)), Condition(label))

    x = ImageNoise(range(2), (1, 4, 6)).draw()
    alpha_bar = [1.0, *(1 - torch.linspace(0.01, 0.3, 20, dtype=torch.float64)).cumprod(0).tolist()]
    largest = 0.0
    for k in range(20, 0, -1):
        before, after = alpha_bar[k], alpha_bar[k - 1]
        x_0 = (1.5 * x).sin() * 1.2
        limit = x_0.abs().amax((1, 2, 3), keepdim=True).clamp(min=1) if isinstance(clipping, DynamicClipping) else 1.0
        x_0 = x_0 / limit if isinstance(clipping, DynamicClipping) else x_0.clamp(-1, 1)
        noise = (x - before**0.5 * x_0) / (1 - before) ** 0.5
        noise = noise - (1 - before) ** 0.5 * 2.0 * (x / 3 + label.view(-1, 1, 1, 1)).cos()
        x_0 = (x - (1 - before) ** 0.5 * noise) / before**0.5
        largest = max(largest, float(x_0.abs().max()))
        x = after**0.5 * x_0 + (1 - after) ** 0.5 * noise
    assert largest > 5
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clipping", [StaticClipping, DynamicClipping])
def test_fingerprints_contain_the_clipping_after_guidance_only_if_a_classifier_shifts_estimates(
    clipping: type[StaticClipping] | type[DynamicClipping],
) -> None:
    process, settings = GaussianProcess(LinearSchedule(20)), (clipping(), clipping(after_guidance=False))
    assert settings[0] == clipping(after_guidance=True)  # the behavior of earlier versions, tested above
    before, now = (DDIM(process, 20, clipping=each) for each in settings)
    assert fingerprint_differences(before, now, classifier=True) == {"clipping.after_guidance": ["missing", False]}
    assert fingerprint_differences(before, now) == {}
    chains = [Ancestral(process, clipping=each) for each in settings]  # shift the mean
    assert fingerprint_differences(chains[0], chains[1], classifier=True) == {}


def respaced(num_timesteps: int, indices: list[int]) -> tuple[list[float], list[float], list[float]]:
    """Return alpha_bar, beta and the posterior variance of each step of a chain, as in Nichol & Dhariwal (2021)."""
    time = [k / num_timesteps for k in range(num_timesteps + 1)]
    cosine = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in time]
    beta = [min(1 - b / a, 0.999) for a, b in pairwise(cosine)]
    every = list(itertools.accumulate((1 - b for b in beta), operator.mul))
    alpha_bar = [every[index] for index in indices]
    previous = [1.0, *alpha_bar[:-1]]
    beta = [1 - a / p for a, p in zip(alpha_bar, previous, strict=True)]
    posterior = [b * (1 - p) / (1 - a) for a, p, b in zip(alpha_bar, previous, beta, strict=True)]
    return alpha_bar, beta, posterior


def test_the_first_log_variance_of_a_respaced_chain_is_that_of_the_chain() -> None:
    stride = 999 / 249
    _, _, posterior = respaced(1000, [round(stride * k) for k in range(250)])  # "250"
    assert math.log(posterior[1]) == pytest.approx(-10.272, abs=5e-4)
    process, zero = GaussianProcess(CosineSchedule()), torch.zeros(1, dtype=torch.float64)
    chain = GaussianProcess(Respaced(CosineSchedule(), UniformTimes()(CosineSchedule(), 250)))
    last, low = torch.tensor([0.001], dtype=torch.float64), torch.full((1, 3, 8, 6), -1.0, dtype=torch.float64)
    for variance in (FixedLarge(), LearnedRange()):
        for each, expected in ((chain, math.log(posterior[1])), (process, -10.734)):
            found = variance.log_variance(each, zero, last, like=low, output=low)
            assert float(found.flatten()[0]) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("num_steps", [250, pytest.param(1000, marks=pytest.mark.full), 2, 1])
@pytest.mark.parametrize(
    ("variance", "scale"),
    [
        (FixedSmall(), lambda beta, posterior: 0.0),
        (FixedLarge(), lambda beta, posterior: posterior[1]),
        (LearnedRange(), lambda beta, posterior: (posterior[1] * beta[0]) ** 0.5),  # of output 0
    ],
    ids=["small", "large", "learned"],
)
def test_the_last_step_scales_the_gradient_by_the_variance_of_the_papers_code(
    variance: Variance, scale: Callable[[list[float], list[float]], float], num_steps: int
) -> None:
    schedule = CosineSchedule()
    indices = [round(t * 1000) - 1 for t in reversed(UniformTimes()(schedule, num_steps))]
    _, beta, posterior = respaced(1000, indices)
    if num_steps == 1:  # the paper's code fails; the only step has the variance of the forward step
        posterior = [*posterior, beta[0]]

    class One:
        num_classes = 3

        def gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return (t <= (indices[0] + 1) / 1000).double().view(-1, 1, 1, 1).expand_as(x_t)  # in the last step only

    def black(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(torch.full_like(x_t, -1.0), torch.zeros_like(x_t))

    guided = ClassifierGuidance(black, One(), 5.0, Labels())  # type: ignore[arg-type]
    sampler = Ancestral(GaussianProcess(schedule), num_steps, variance=variance, chain_variance=True)
    images = sampler.sample(guided, RecordedNoise((2, 1, 4, 6)), Condition(torch.tensor([0, 2])))
    torch.testing.assert_close(images + 1, torch.full_like(images, 5 * scale(beta, posterior)), rtol=1e-6, atol=1e-12)


def test_the_variance_of_the_last_step_is_in_fingerprints_only_with_a_classifier() -> None:
    process = GaussianProcess(CosineSchedule())
    before, now = Ancestral(process, 250), Ancestral(process, 250, chain_variance=True)
    assert before == Ancestral(process, 250, chain_variance=False)
    assert fingerprint_differences(before, now, classifier=True) == {"chain_variance": ["missing", True]}
    assert fingerprint_differences(before, now) == {}


def test_fingerprints_of_images_contain_guided_settings_if_they_are_guided_by_a_classifier() -> None:
    module = small_module()
    classifier = NoisyClassifier(HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,)), module.process)
    now = DDIM(module.process, 4, clipping=StaticClipping(after_guidance=False))
    for guidance, expected in ((Guidance(classifier=classifier), {"name", "after_guidance"}), (None, {"name"})):
        found = SeededImages(module, sampler=now, guidance=guidance).protocol()["sampler"]["clipping"]
        assert found.keys() == expected


def test_no_gradient_shifts_an_estimate_out_of_range() -> None:
    process, maxima = GaussianProcess(CosineSchedule()), list[float]()
    guided = ClassifierGuidance(denoise, Cosine(), 1e4, Labels())  # type: ignore[arg-type]
    sampler = DDIM(process, num_steps=5, clipping=StaticClipping())
    sampler.sample(
        guided,
        ImageNoise(range(2), (1, 4, 6)),
        Condition(torch.tensor([0, 2])),
        lambda done, x_t, x_0: maxima.append(float(x_0.abs().max())),
    )
    assert max(maxima) <= 1


class Linear(ClassifierNetwork):
    """A classifier whose logits are a linear map of the pixels; records the std and the time of its inputs."""

    in_channels, resolution, num_classes = 2, 4, 3

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(num_pixels, 3).double()
        self.calls: list[tuple[float, float]] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls.append((float(x.detach().double().std()), float(time[0])))
        logits: Tensor = self.map(x.flatten(1).double())
        return logits


@pytest.mark.parametrize("schedule", [LinearSchedule(20), EDMSchedule()])
def test_the_gradient_is_that_of_the_log_probability_of_the_label(schedule: NoiseSchedule) -> None:
    process, network = GaussianProcess(schedule), Linear(2 * 4 * 3)
    classifier = NoisyClassifier(network, process)
    t = schedule.quantile(torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64))
    x_t, label = torch.randn(3, 2, 4, 3).double() * process.coefficients(t, like=torch.ones(3, 1, 1, 1))[1], LABEL
    alpha_t, sigma_t = process.coefficients(t, like=x_t)
    scale = (alpha_t**2 + sigma_t**2).sqrt()
    probabilities = network.map((x_t / scale).flatten(1)).softmax(1)
    weight = network.map.weight  # [3, pixels]
    expected = (weight[label] - probabilities @ weight).view_as(x_t) / scale
    torch.testing.assert_close(classifier.gradient(x_t, t, label).double(), expected, rtol=1e-5, atol=1e-6)
    assert not x_t.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


LABEL = torch.tensor([0, 2, 1])


def test_a_classifier_receives_the_time_input_of_a_network() -> None:
    network = Linear(24)
    classifier = NoisyClassifier(network, GaussianProcess(LinearSchedule(20)))
    classifier.logits(torch.randn(3, 2, 4, 3), torch.tensor([1.0, 0.5, 0.05], dtype=torch.float64))
    assert network.calls[0][1] == 19  # the index k - 1


def test_classifier_guidance_is_combined_with_classifier_free_guidance() -> None:
    process = GaussianProcess(LinearSchedule(20))
    labels: list[Tensor | None] = []

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        labels.append(condition.label)
        return x / 2

    guidance = Guidance(Strength(2.0), classifier=NoisyClassifier(Linear(24), process), classifier_scale=3.0)
    denoiser = Denoiser(NetworkFunction(network), process, Epsilon())
    x_t, t = torch.randn(3, 2, 4, 3), torch.full((3,), 0.5, dtype=torch.float64)
    found = guidance(denoiser, Labels(3, dropout=0.1))(x_t, t, Condition(LABEL))
    assert labels[0] is not None
    assert labels[0].tolist() == [0, 2, 1, 3, 3, 3]
    assert found.gradient is not None
    assert guidance.classifier is not None
    torch.testing.assert_close(found.gradient, 3.0 * guidance.classifier.gradient(x_t, t, LABEL))


def test_an_unconditional_network_does_not_receive_the_label_of_the_classifier() -> None:
    process = GaussianProcess(LinearSchedule(20))
    guidance = Guidance(classifier=NoisyClassifier(Linear(24), process))
    assert guidance.num_classes(Labels()) == 3

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.label is None
        return x / 2

    x_t, t = torch.randn(3, 2, 4, 3), torch.full((3,), 0.5, dtype=torch.float64)
    denoiser = Denoiser(NetworkFunction(network), process, Epsilon())
    assert guidance(denoiser, Labels())(x_t, t, Condition(LABEL)).gradient is not None
    with pytest.raises(ValueError, match="`label` must be given for classifier guidance, got None"):
        guidance(denoiser, Labels())(x_t, t, Condition())


def test_a_classifier_of_other_classes_or_another_schedule_is_refused() -> None:
    process = GaussianProcess(LinearSchedule(20))
    denoiser = Denoiser(NetworkFunction(lambda x, time, condition: x), process, Epsilon())
    with pytest.raises(ValueError, match="`classifier` must have the 5 classes of the network that it guides, got 3"):
        Guidance(classifier=NoisyClassifier(Linear(24), process))(denoiser, Labels(5))
    other = NoisyClassifier(Linear(24), GaussianProcess(CosineSchedule()))
    with pytest.raises(ValueError, match=r"`classifier` must be trained with the schedule .*LinearSchedule.*Cosine"):
        Guidance(classifier=other)(denoiser, Labels())
