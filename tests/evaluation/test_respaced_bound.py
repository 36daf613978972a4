"""The bound of a respaced chain, compared with the algorithm of the code of Nichol & Dhariwal (2021), written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.evaluation.likelihood import VariationalBound
from diffusion_lab.fingerprints import describe
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedRange,
    LinearSchedule,
    TableSchedule,
    Variance,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import (
    Clipping,
    LeadingTimes,
    NoClipping,
    SectionTimes,
    StaticClipping,
    TimeGrid,
    TrailingTimes,
    UniformTimes,
)
from support.oracles import GaussianOracle


def eight_bit(num_images: int) -> Tensor:
    x_0 = 0.3 + 0.5 * torch.randn(num_images, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    return (x_0.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def decoder_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log-probabilities of pixels under a discretized Gaussian (Ho et al. 2020, eq. 13)."""
    upper, lower = ((x - mean + half) / log_std.exp() / math.sqrt(2) for half in (1 / 255, -1 / 255))
    above = torch.where(x > 0.999, torch.ones_like(x), (1 + torch.erf(upper)) / 2)
    below = torch.where(x < -0.999, torch.zeros_like(x), (1 + torch.erf(lower)) / 2)
    return (above - below).log()


def respaced_bound(
    alpha_bar: Tensor, steps: list[int], x_0: Tensor, noises: list[Tensor], kind: str
) -> tuple[list[float], list[Tensor]]:
    """Return terms and x_t of the chain of the given step indices (Nichol & Dhariwal 2021, code, respace.py).

    Written out for one image and the functions `x_0_of` and `fraction_of` as network. The new variances come from the
    cumulative products, and all else from the new variances: calc_bpd_loop and _vb_terms_bpd of the code.
    """
    last, betas = 1.0, []
    for index in steps:
        betas.append(1 - float(alpha_bar[index]) / last)
        last = float(alpha_bar[index])
    beta = torch.tensor(betas, dtype=torch.float64)
    bar = (1 - beta).cumprod(0)
    bar_before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    posterior = beta * (1 - bar_before) / (1 - bar)
    small = torch.cat([posterior[1:2], posterior[1:]]).log()
    large = {"FixedLarge": torch.cat([posterior[1:2], beta[1:]]).log(), "LearnedRange": beta.log()}.get(kind, small)
    terms, noisy = [], []
    for k, noise in enumerate(noises):
        x_t = bar[k].sqrt() * x_0 + (1 - bar[k]).sqrt() * noise
        on_x_0 = beta[k] * bar_before[k].sqrt() / (1 - bar[k])
        on_x_t = (1 - bar_before[k]) * (1 - beta[k]).sqrt() / (1 - bar[k])
        share = (fraction_of(x_t) + 1) / 2 if kind == "LearnedRange" else torch.ones_like(x_t)
        log_variance = share * large[k] + (1 - share) * small[k]
        mean, true_mean = (on_x_0 * each + on_x_t * x_t for each in (x_0_of(x_t, steps[k]).clamp(-1, 1), x_0))
        squared = (true_mean - mean) ** 2 * (-log_variance).exp()
        divergence = 0.5 * (-1 + log_variance - small[k] + (small[k] - log_variance).exp() + squared)
        decoded = -decoder_log_likelihood(x_0, mean, 0.5 * log_variance)
        terms.append(float((divergence if k else decoded).mean() / math.log(2)))
        noisy.append(x_t)
    prior = 0.5 * (-1 - (1 - bar[-1]).log() + (1 - bar[-1]) + bar[-1] * x_0**2)
    return [*terms, float(prior.mean() / math.log(2))], noisy


def x_0_of(x_t: Tensor, index: int) -> Tensor:
    return 0.99 * x_t / (1 + 0.05 * index)


def fraction_of(x_t: Tensor) -> Tensor:
    return (3 * x_t).sin()


class GivenNoises:
    """A source that returns the given noise tensors in turn."""

    def __init__(self, noises: list[Tensor]) -> None:
        self.noises = iter(noises)

    def draw(self) -> Tensor:
        return next(self.noises)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    ("schedule", "time_grid", "steps"),
    [
        (CosineSchedule(40), UniformTimes(), [0, 10, 20, 29, 39]),  # round(39 k / 4), 19.5 to the even 20
        (LinearSchedule(100), SectionTimes([3, 2]), [0, 24, 49, 50, 99]),  # sections of 50; 24.5 to the even 24
        (CosineSchedule(40), LeadingTimes(), [0, 8, 16, 24, 32]),  # without the last step
    ],
    ids=["uniform", "sections", "leading"],
)
def test_the_bound_of_a_respaced_chain_is_that_of_a_chain_with_its_own_variances(
    schedule: TableSchedule, time_grid: TimeGrid, steps: list[int], variance: Variance
) -> None:
    x_0 = eight_bit(1).double()
    noises = [torch.randn(1, 3, 8, 6, dtype=torch.float64) for _ in steps]
    expected, noisy = respaced_bound((1 - schedule.betas).cumprod(0), steps, x_0, noises, type(variance).__name__)
    indices: list[int] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        torch.testing.assert_close(x_t, noisy[len(indices)], rtol=0, atol=1e-9)
        indices.append(int(schedule.network_time(t)[0]))
        return Estimate(x_0_of(x_t, indices[-1]), fraction_of(x_t))

    bound = VariationalBound(GaussianProcess(schedule), variance, num_steps=5, time_grid=time_grid)
    found = bound(denoiser, x_0, Condition(), GivenNoises(noises))[0]
    assert indices == steps
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert (bound.num_terms, bound.num_evaluations) == (6, 5)
    assert bound.steps.tolist() == [(index + 1) / schedule.num_timesteps for index in steps]


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=lambda v: type(v).__name__)
def test_a_chain_of_all_steps_has_the_bound_of_the_schedule_to_the_bit(variance: Variance) -> None:
    process, x_0 = GaussianProcess(CosineSchedule(20)), eight_bit(5)
    settings: list[dict[str, Any]] = [{}, {"num_steps": 20}, {"num_steps": 20, "time_grid": TrailingTimes()}]
    settings.append({"time_grid": SectionTimes([3, 2])})  # not used without num_steps
    bounds = [VariationalBound(process, variance, **each) for each in settings]
    denoiser = GaussianOracle(process, 0.3, 0.5)
    found = [bound(denoiser, x_0, Condition(), ImageNoise(range(5), (3, 8, 6))) for bound in bounds]
    assert all(torch.equal(terms, found[0]) for terms in found)
    assert all(bound == bounds[0] for bound in bounds)


def test_the_name_and_the_fingerprint_contain_the_number_of_steps_of_a_respaced_chain() -> None:
    process = GaussianProcess(CosineSchedule(20))
    full, respaced = (VariationalBound(process, FixedSmall(), num_steps=number) for number in (None, 5))
    assert (full.name, respaced.name) == ("bits_bound", "bits_bound_5_steps")
    assert describe(full, omit=("process",)) == {
        "name": "VariationalBound", "variance": {"name": "FixedSmall"}, "clipping": {"name": "StaticClipping"}
    }  # fmt: skip
    added = {"num_steps": 5, "time_grid": {"name": "UniformTimes"}}
    assert describe(respaced, omit=("process",)) == describe(full, omit=("process",)) | added


def test_a_respaced_chain_of_more_steps_than_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be at most the schedule's 20 steps, got 21"):
        VariationalBound(GaussianProcess(CosineSchedule(20)), FixedSmall(), num_steps=21)


@pytest.mark.parametrize("clip_mean", [False, True])
def test_a_predicted_mean_is_the_mean_of_each_term_unless_it_is_clipped(clip_mean: bool) -> None:
    process, x_0 = GaussianProcess(LinearSchedule(20)), eight_bit(2)

    def outside(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(1.4 * x_t, clip_mean=clip_mean)

    def bound(clipping: Clipping) -> Tensor:
        noise = ImageNoise(range(2), (3, 8, 6))
        return VariationalBound(process, FixedSmall(), clipping)(outside, x_0, Condition(), noise)

    expected = StaticClipping() if clip_mean else NoClipping()
    torch.testing.assert_close(bound(StaticClipping()), bound(expected), rtol=0, atol=0)
    assert bool((bound(NoClipping()) != bound(StaticClipping())).any()) == clip_mean
