"""Classifier guidance in every sampler, against exact distributions and the formulas of the paper."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser, Estimate
from diffusion_lab.guidance import ClassifierGuidance, Guidance, Strength
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.networks import ClassifierNetwork, Condition, Labels
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    FixedLarge,
    GaussianProcess,
    LearnedRange,
    LinearSchedule,
    NoiseSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, NoClipping, StaticClipping
from support.every_sampler import SAMPLERS, Case
from support.networks import NetworkFunction
from support.oracles import MixtureOracle
from support.representatives import with_representatives

ONE_OF_EACH_KIND = (
    "ancestral, fixed large", "ddim, eta 0", "euler, churn", "heun", "dpm_solver", "dpm_solver_sde", "unipc, order 2",
    "predictor_corrector, small", "rk45",
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
