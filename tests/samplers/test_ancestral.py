import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.contracts import conventions
from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate
from diffusion_lab.guidance import ClassifierFreeGuidance, Guidable, Strength
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedDiagonal,
    LearnedRange,
    LinearSchedule,
    PosteriorMean,
    Variance,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, FixedStepSampler, ListedTimes, NoClipping
from support.oracles import GaussianOracle, RecordedNoise, walk

SCHEDULE = LinearSchedule(20, 0.005, 0.5)
PROCESS = GaussianProcess(SCHEDULE)


def sampler(variance: Variance) -> Ancestral:
    return Ancestral(PROCESS, num_steps=20, variance=variance, clipping=NoClipping())


def stds(variance: Variance, denoiser: DenoiserLike) -> list[float]:
    """Return the std of x_t after each step, over 46,080 pixels: its standard error is below 0.4 %."""
    visited, _ = walk(sampler(variance), denoiser, ImageNoise(range(40), (3, 24, 16)))
    return [float(x_t.std()) for x_t in visited]


def test_each_step_is_algorithm_2_of_ho_et_al() -> None:
    denoiser, noise = GaussianOracle(PROCESS, 0.3, 0.5), RecordedNoise((5, 3, 8, 6))
    visited, _ = walk(sampler(FixedLarge()), denoiser, noise)
    beta, alpha_bar = SCHEDULE.betas.tolist(), SCHEDULE.alpha_bar.tolist()
    x_t = noise.drawn[0]
    for i, k in enumerate(reversed(range(20))):
        x_0 = denoiser(x_t, torch.full((5,), (k + 1) / 20, dtype=torch.float64), Condition()).x_0
        epsilon = (x_t - math.sqrt(alpha_bar[k]) * x_0) / math.sqrt(1 - alpha_bar[k])
        x_t = (x_t - beta[k] / math.sqrt(1 - alpha_bar[k]) * epsilon) / math.sqrt(1 - beta[k])  # Ho et al., eq. 11
        if k > 0:
            x_t = x_t + math.sqrt(beta[k]) * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], x_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=str)
@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_noise_is_drawn_once_per_step(variance: Variance, num_steps: int) -> None:
    noise = RecordedNoise((5, 3, 8, 6))  # one for the start, none in the last step
    Ancestral(PROCESS, num_steps=num_steps, variance=variance).sample(GaussianOracle(PROCESS), noise, Condition())
    assert len(noise.drawn) == num_steps


def test_the_large_variance_is_exact_for_unit_gaussian_data() -> None:
    found = stds(FixedLarge(), GaussianOracle(PROCESS, 0.0, 1.0))
    assert found == pytest.approx([1.0] * 20, abs=0.015)


def test_the_small_variance_is_exact_for_data_at_a_point() -> None:
    found = stds(FixedSmall(), GaussianOracle(PROCESS, 0.3, 0.0))
    expected = (1 - SCHEDULE.alpha_bar).sqrt().flip(0)[1:].tolist()
    assert found[:-1] == pytest.approx(expected, rel=0.015)
    assert found[-1] < 1e-5


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_the_small_variance_narrows_and_the_large_variance_widens_other_gaussians(std: float) -> None:
    small = stds(FixedSmall(), GaussianOracle(PROCESS, 0.0, std))[-1]
    large = stds(FixedLarge(), GaussianOracle(PROCESS, 0.0, std))[-1]
    assert small == pytest.approx(expected_std(std, large=False), rel=0.015)
    assert large == pytest.approx(expected_std(std, large=True), rel=0.015)
    assert small < 0.9 * std < large


def expected_std(std: float, *, large: bool) -> float:
    """Return the std of the images: with a linear denoiser, the chain of Ho et al. (2020), eq. 7, is linear in x_t."""
    alpha_bar = [1.0, *SCHEDULE.alpha_bar.tolist()]
    variance = 1.0
    for k in reversed(range(1, 21)):
        alpha_bar_t, alpha_bar_s = alpha_bar[k], alpha_bar[k - 1]
        beta = 1 - alpha_bar_t / alpha_bar_s
        gain = math.sqrt(alpha_bar_t) * std**2 / (alpha_bar_t * std**2 + 1 - alpha_bar_t)
        slope = math.sqrt(alpha_bar_s) * beta * gain + math.sqrt(1 - beta) * (1 - alpha_bar_s)
        slope = slope / (1 - alpha_bar_t)
        added = (beta if large else beta * (1 - alpha_bar_s) / (1 - alpha_bar_t)) if k > 1 else 0.0
        variance = slope**2 * variance + added
    return math.sqrt(variance)


def test_the_sampler_of_ho_et_al_is_the_default() -> None:
    default = Ancestral(GaussianProcess(CosineSchedule()))
    assert (len(default.times), default.times[0], default.times[-1]) == (1000, 1.0, 0.001)
    assert default.variance == FixedLarge()


class WithVarianceOutput:
    """An exact denoiser with a constant variance output."""

    def __init__(self, variance_output: float) -> None:
        self.variance_output = variance_output

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        x_0 = GaussianOracle(PROCESS, 0.3, 0.5)(x_t, t, condition).x_0
        return Estimate(x_0, torch.full_like(x_t, self.variance_output))


@pytest.mark.parametrize("num_steps", [1, 7, 20])
@pytest.mark.parametrize(("output", "fixed"), [(-1.0, FixedSmall()), (1.0, FixedLarge())], ids=["small", "large"])
def test_the_ends_of_a_learned_range_are_the_fixed_variances(output: float, fixed: Variance, num_steps: int) -> None:
    noise = RecordedNoise((5, 3, 8, 6))
    learned, _ = walk(Ancestral(PROCESS, num_steps, variance=LearnedRange()), WithVarianceOutput(output), noise)
    expected, _ = walk(
        Ancestral(PROCESS, num_steps, variance=fixed), WithVarianceOutput(output), RecordedNoise((5, 3, 8, 6))
    )
    torch.testing.assert_close(learned, expected, rtol=1e-9, atol=1e-9)
    assert len(noise.drawn) == num_steps


def test_the_middle_of_a_learned_range_is_the_geometric_mean() -> None:
    small, middle, large = (
        walk(sampler(LearnedRange()), WithVarianceOutput(output), RecordedNoise((5, 3, 8, 6)))[0][0]
        for output in (-1, 0, 1)
    )
    beta, alpha_bar = SCHEDULE.betas[-1], SCHEDULE.alpha_bar
    ratio = (((1 - alpha_bar[-2]) / (1 - alpha_bar[-1])) ** 0.5).sqrt()  # std of small / std of middle
    torch.testing.assert_close(middle - small, (large - small) * (ratio - ratio**2) / (1 - ratio**2))
    assert float((large - small).std()) == pytest.approx(float(beta.sqrt() * (1 - ratio**2)), rel=0.1)


def test_a_learned_diagonal_is_the_log_variance_itself() -> None:
    noise = RecordedNoise((5, 3, 8, 6))
    found, _ = walk(sampler(LearnedDiagonal()), WithVarianceOutput(math.log(0.09)), noise)
    without_noise, _ = walk(
        sampler(LearnedDiagonal()), WithVarianceOutput(math.log(1e-30)), RecordedNoise((5, 3, 8, 6))
    )
    torch.testing.assert_close(found[0] - without_noise[0], 0.3 * noise.drawn[1], rtol=1e-9, atol=1e-9)


def previous_x(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Return an output of a network for the posterior mean, far from the range of images."""
    assert condition.label is None or len(condition.label) == len(x)
    scale = 1.0 if condition.label is None else 1 + condition.label.view(-1, 1, 1, 1)
    return scale * 3 * (x + time.view(-1, 1, 1, 1)).sin()


def clipped_mean(x: Tensor, output: Tensor, k: int, after: int) -> tuple[Tensor, Tensor]:
    """Return the mean of Ho et al. (2020), eq. 7, from step k to `after` at the clipped x_0, and this x_0."""
    alpha_bar = [1.0, *SCHEDULE.alpha_bar.tolist()]

    def mean_weights(k: int, after: int) -> tuple[float, float]:
        beta = 1 - alpha_bar[k] / alpha_bar[after]
        on_x = math.sqrt(1 - beta) * (1 - alpha_bar[after]) / (1 - alpha_bar[k])
        return math.sqrt(alpha_bar[after]) * beta / (1 - alpha_bar[k]), on_x

    on_x_0, on_x = mean_weights(k, k - 1)
    x_0 = ((output - on_x * x) / on_x_0).clamp(-1, 1)
    on_x_0, on_x = mean_weights(k, after)
    return on_x_0 * x_0 + on_x * x, x_0


@pytest.mark.parametrize("clip_mean", [False, True])
@pytest.mark.parametrize("steps", [range(20, 0, -1), [20, 19, 12, 5, 4, 1]], ids=["all", "respaced"])
def test_the_mean_of_a_posterior_mean_prediction_is_the_output_of_the_network(
    steps: list[int], clip_mean: bool
) -> None:
    denoiser, noise = Denoiser(previous_x, PROCESS, PosteriorMean(clip_mean=clip_mean)), RecordedNoise((5, 3, 8, 6))
    grid = ListedTimes([k / 20 for k in steps])
    visited, estimates = walk(Ancestral(PROCESS, len(steps), grid, FixedSmall()), denoiser, noise)
    x, alpha_bar, num_clipped = noise.drawn[0], [1.0, *SCHEDULE.alpha_bar.tolist()], 0
    for i, (k, after) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        output = previous_x(x, torch.full((5,), k - 1.0), Condition()).float()
        mean, x_0 = clipped_mean(x, output, k, after)
        num_clipped += int((x_0.abs() == 1).sum())
        if k - after == 1 and not clip_mean:
            mean = output  # PREVIOUS_X of Nichol & Dhariwal (2021)
        variance = (1 - alpha_bar[after]) / (1 - alpha_bar[k]) * (1 - alpha_bar[k] / alpha_bar[after])
        x = mean + math.sqrt(variance) * noise.drawn[i + 1] if after else mean
        torch.testing.assert_close(visited[i], x.to(visited), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(estimates[i], x_0.to(estimates), rtol=1e-4, atol=1e-4)  # for other uses
        x = visited[i]
    assert num_clipped > 1000


def test_guidance_extrapolates_the_output_for_the_mean() -> None:
    denoiser, noise = Denoiser(previous_x, PROCESS, PosteriorMean(clip_mean=False)), RecordedNoise((5, 3, 8, 6))
    guided = ClassifierFreeGuidance(Guidable.from_denoiser(denoiser), null_label=0, strength=Strength(2.0))
    label = torch.full((5,), 3)
    sampler, visited = Ancestral(PROCESS, 20, variance=FixedSmall()), list[Tensor]()
    sampler.sample(guided, noise, label, lambda _, x_t, x_0: visited.append(x_t))
    weak, strong = 3 * (noise.drawn[0] + 19).sin(), 4 * 3 * (noise.drawn[0] + 19).sin()
    alpha_bar, beta = SCHEDULE.alpha_bar.tolist(), SCHEDULE.betas.tolist()
    std = math.sqrt(beta[-1] * (1 - alpha_bar[-2]) / (1 - alpha_bar[-1]))
    expected = weak + 2 * (strong - weak) + std * noise.drawn[1]
    torch.testing.assert_close(visited[0], expected.to(visited[0]), rtol=1e-4, atol=1e-3)


def test_the_mean_is_clipped_by_default_and_fingerprints_contain_the_other_convention() -> None:
    assert PosteriorMean() == PosteriorMean(clip_mean=True)
    assert conventions(PosteriorMean()) == {}
    assert conventions(PosteriorMean(clip_mean=False)) == {"clip_mean": False}


@pytest.mark.parametrize(
    ("chosen", "unused"),
    [
        (Ancestral(PROCESS), ["chain_variance"]),  # the chain of all steps
        (Ancestral(PROCESS, variance=FixedSmall()), []),
        (Ancestral(PROCESS, num_steps=5), []),
        (Ancestral(PROCESS, clipping=NoClipping()), ["chain_variance", "clip_mean"]),
        (DDIM(PROCESS, num_steps=20), ["clip_mean"]),
    ],
)
def test_fingerprints_contain_the_conventions_of_a_step_only_if_they_change_images(
    chosen: FixedStepSampler, unused: list[str]
) -> None:
    names = ("chain_variance", "clip_mean")
    assert [name for name in names if name in chosen.without_effect(classifier=True)] == unused


def test_a_learned_variance_of_a_denoiser_without_variance_output_is_refused() -> None:
    with pytest.raises(ValueError, match="`variance` must be FixedSmall or FixedLarge"):
        sampler(LearnedRange()).sample(GaussianOracle(PROCESS), RecordedNoise((5, 3, 8, 6)), Condition())


def test_few_cosine_steps_recover_the_data_although_the_first_step_starts_almost_without_signal() -> None:
    # The last alpha_bar of 4000 cosine steps is 1.5e-10. The first of 50 steps has variance 1 to six digits, and an
    # error of the predicted noise, divided by the root of alpha_bar, would be 81,000 times larger.
    process = GaussianProcess(CosineSchedule(4000))
    chain = Ancestral(process, num_steps=50, variance=FixedSmall(), clipping=NoClipping())
    t, s = chain.intervals()
    assert float(process.transition(s, t)[1][0]) == pytest.approx(1, abs=1e-6)
    images = chain.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(40), (3, 24, 16)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.01)
    assert 0.4 < float(images.std()) < 0.5  # the small variance narrows all data but a single point
