"""Predictor-corrector sampling against algorithms 1, 4 and 5 of Song et al. (2021), with norms per image."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    EDMSchedule,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedRange,
    LinearSchedule,
    Variance,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import Ancestral, ListedTimes, NoClipping, PredictorCorrector
from support.every_sampler import fingerprint_differences
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise, walk

TABLE = LinearSchedule(12, 0.01, 0.5)
VP, EDM = GaussianProcess(TABLE), GaussianProcess(EDMSchedule())
SHAPE = (5, 3, 8, 6)


def score(oracle: MixtureOracle, x_t: Tensor, t: float) -> Tensor:
    x_t = x_t.clone().requires_grad_()
    log_density = oracle.log_density(x_t, torch.full((len(x_t),), t, dtype=torch.float64))
    return torch.autograd.grad(log_density.sum(), x_t)[0]


def corrected(x: Tensor, g: Tensor, z: Tensor, snr: float, alpha: float) -> Tensor:
    """Apply the inner loop of algorithms 4 (alpha = 1) and 5 to each image."""
    images = []
    for image, image_g, image_z in zip(x, g, z, strict=True):
        epsilon = 2 * alpha * float(snr * image_z.square().sum().sqrt() / image_g.square().sum().sqrt()) ** 2
        images.append(image + epsilon * image_g + math.sqrt(2 * epsilon) * image_z)
    return torch.stack(images)


@pytest.mark.parametrize(("num_corrections", "snr"), [(0, 0.16), (1, 0.16), (2, 0.05)])
def test_on_a_variance_preserving_schedule_it_is_algorithm_5(num_corrections: int, snr: float) -> None:
    oracle, noise = MixtureOracle(VP), RecordedNoise(SHAPE)
    sampler = PredictorCorrector(VP, num_corrections=num_corrections, snr=snr, num_steps=12, clipping=NoClipping())
    visited, _ = walk(sampler, oracle, noise)
    remaining = iter(noise.drawn)
    x = next(remaining)
    for i, k in enumerate(range(12, 0, -1)):
        beta = float(TABLE.betas[k - 1])
        for _ in range(num_corrections):  # the order of the paper's code: correction, then prediction
            x = corrected(x, score(oracle, x, k / 12), next(remaining), snr, 1 - beta)
        x = (x + beta * score(oracle, x, k / 12)) / math.sqrt(1 - beta)  # its ancestral sampling, eq. 4
        x = x + math.sqrt(beta) * next(remaining) if k > 1 else x
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    assert not list(remaining)


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=["reverse diffusion", "ancestral"])
def test_on_a_variance_exploding_schedule_it_is_algorithm_4(variance: Variance) -> None:
    levels = [50.0, 12.0, 4.0, 1.0, 0.3, 0.1]
    oracle, noise = MixtureOracle(EDM), RecordedNoise(SHAPE)
    sampler = PredictorCorrector(
        EDM, 6, variance=variance, time_grid=ListedTimes(levels), clipping=NoClipping(), num_corrections=2
    )
    visited, _ = walk(sampler, oracle, noise)
    remaining = iter(noise.drawn)
    x = levels[0] * next(remaining)
    for i, (sigma, after) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
        for _ in range(2):
            x = corrected(x, score(oracle, x, sigma), next(remaining), 0.16, 1.0)
        added = sigma**2 - after**2
        x = x + added * score(oracle, x, sigma)
        if after > 0:
            std = math.sqrt(added) if variance == FixedLarge() else math.sqrt(after**2 * added / sigma**2)
            x = x + std * next(remaining)
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    assert not list(remaining)


@pytest.mark.parametrize("num_corrections", [0, 1])
def test_the_predictor_reverse_diffusion_is_equation_46(num_corrections: int) -> None:
    oracle, noise = MixtureOracle(VP), RecordedNoise(SHAPE)
    sampler = PredictorCorrector(VP, 12, num_corrections, predictor="reverse_diffusion", clipping=NoClipping())
    visited, _ = walk(sampler, oracle, noise)
    remaining = iter(noise.drawn)
    x = next(remaining)
    for i, k in enumerate(range(12, 0, -1)):
        beta = float(TABLE.betas[k - 1])
        for _ in range(num_corrections):
            x = corrected(x, score(oracle, x, k / 12), next(remaining), 0.16, 1 - beta)
        x = (2 - math.sqrt(1 - beta)) * x + beta * score(oracle, x, k / 12)
        x = x + math.sqrt(beta) * next(remaining) if k > 1 else x
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    assert not list(remaining)


def test_the_predictor_reverse_diffusion_recovers_a_gaussian_in_small_steps() -> None:
    process = GaussianProcess(LinearSchedule())
    sampler = PredictorCorrector(process, predictor="reverse_diffusion", num_corrections=0, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(40), (3, 24, 16)))
    assert float(images.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(images.std()) == pytest.approx(0.5, abs=0.015)


def test_both_predictors_are_equal_on_a_variance_exploding_schedule() -> None:
    sampler = PredictorCorrector(EDM, 4, time_grid=ListedTimes([50.0, 12.0, 3.0, 0.3]), clipping=NoClipping())
    ancestral, _ = walk(sampler, MixtureOracle(EDM), RecordedNoise(SHAPE))
    other, _ = walk(replace(sampler, predictor="reverse_diffusion"), MixtureOracle(EDM), RecordedNoise(SHAPE))
    torch.testing.assert_close(other, ancestral, rtol=1e-9, atol=1e-9)


def test_the_default_predictor_is_ancestral_and_fingerprints_contain_the_other() -> None:
    ancestral, other = (PredictorCorrector(VP, 12, predictor=name) for name in ("ancestral", "reverse_diffusion"))
    assert PredictorCorrector(VP, 12) == ancestral
    assert fingerprint_differences(ancestral, other) == {"predictor": ["missing", "reverse_diffusion"]}
    with pytest.raises(ValueError, match="predictor must be ancestral or reverse_diffusion, got euler"):
        PredictorCorrector(VP, 12, predictor="euler")


def test_the_step_size_of_a_correction_is_computed_for_each_image() -> None:
    # If norms were averaged over the batch, a change of one image would change all others.
    oracle = MixtureOracle(EDM)
    sampler = PredictorCorrector(EDM, 2, time_grid=ListedTimes([5.0, 1.0]), clipping=NoClipping())

    class FirstNoiseScaled(RecordedNoise):
        def draw(self) -> Tensor:
            noise = super().draw()
            return torch.cat([9 * noise[:1], noise[1:]])

    plain = sampler.sample(oracle, RecordedNoise(SHAPE), Condition())
    scaled = sampler.sample(oracle, FirstNoiseScaled(SHAPE), Condition())
    assert torch.equal(plain[1:], scaled[1:])
    assert not torch.equal(plain[:1], scaled[:1])


def test_without_corrections_it_is_ancestral_sampling_of_the_same_variance() -> None:
    for variance in (FixedLarge(), FixedSmall()):
        predicted, _ = walk(
            PredictorCorrector(VP, 12, 0, variance=variance), GaussianOracle(VP, 0.3, 0.5), RecordedNoise(SHAPE)
        )
        ancestral, _ = walk(Ancestral(VP, variance=variance), GaussianOracle(VP, 0.3, 0.5), RecordedNoise(SHAPE))
        torch.testing.assert_close(predicted, ancestral, rtol=1e-9, atol=1e-9)


def test_the_predictor_uses_the_learned_variance_at_the_corrected_image() -> None:
    oracle = GaussianOracle(VP, 0.3, 0.5)

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(oracle(x_t, t, condition).x_0, torch.ones_like(x_t))

    learned, _ = walk(PredictorCorrector(VP, 12, variance=LearnedRange()), denoiser, RecordedNoise(SHAPE))
    large, _ = walk(PredictorCorrector(VP, 12, variance=FixedLarge()), oracle, RecordedNoise(SHAPE))
    torch.testing.assert_close(learned, large, rtol=1e-9, atol=1e-9)


def test_the_defaults_are_those_of_the_paper() -> None:
    assert PredictorCorrector(VP, 12).snr == 0.16
    assert PredictorCorrector(VP, 12).num_corrections == 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_corrections must be at least 0, got -1"):
        PredictorCorrector(VP, 12, num_corrections=-1)
    with pytest.raises(ValueError, match="snr must be above 0, got 0"):
        PredictorCorrector(VP, 12, snr=0.0)
