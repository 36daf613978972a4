import math

import pytest
import torch

from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, FixedSmall, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, ListedTimes, NoClipping
from support.oracles import GaussianOracle, RecordedNoise, walk

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)
GRID = ListedTimes([0.9, 0.7, 0.4, 0.1])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_each_step_is_equation_12_of_song_et_al(eta: float) -> None:
    denoiser, noise = GaussianOracle(PROCESS, 0.3, 0.5), RecordedNoise((5, 3, 8, 6))
    sampler = DDIM(PROCESS, num_steps=4, eta=eta, time_grid=GRID, clipping=NoClipping())
    visited, _ = walk(sampler, denoiser, noise)
    level = [1.0, *SCHEDULE.alpha_bar.tolist()]  # alpha in the paper
    x_t = noise.drawn[0]
    for i, (t, s) in enumerate([(36, 28), (28, 16), (16, 4), (4, 0)]):
        x_0 = denoiser(x_t, torch.full((5,), t / 40, dtype=torch.float64), Condition()).x_0
        epsilon = (x_t - math.sqrt(level[t]) * x_0) / math.sqrt(1 - level[t])
        sigma = eta * math.sqrt((1 - level[s]) / (1 - level[t]) * (1 - level[t] / level[s]))  # eq. 16
        x_t = math.sqrt(level[s]) * x_0 + math.sqrt(1 - level[s] - sigma**2) * epsilon
        if sigma > 0:
            x_t = x_t + sigma * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("after_clipping", [True, False])
def test_the_noise_of_a_step_is_that_before_or_after_the_clipping_of_x_0(after_clipping: bool) -> None:
    denoiser, noise = GaussianOracle(PROCESS, 0.3, 2.0), RecordedNoise((5, 3, 8, 6))
    sampler = DDIM(PROCESS, num_steps=4, time_grid=GRID, noise_after_clipping=after_clipping)
    visited, _ = walk(sampler, denoiser, noise)
    x_t, level = noise.drawn[0], [1.0, *SCHEDULE.alpha_bar.tolist()]
    for i, (t, s) in enumerate([(36, 28), (28, 16), (16, 4), (4, 0)]):
        x_0 = denoiser(x_t, torch.full((5,), t / 40, dtype=torch.float64), Condition()).x_0
        clipped = x_0.clamp(-1, 1)
        assert not torch.equal(clipped, x_0)
        source = clipped if after_clipping else x_0
        epsilon = (x_t - math.sqrt(level[t]) * source) / math.sqrt(1 - level[t])
        x_t = math.sqrt(level[s]) * clipped + math.sqrt(1 - level[s]) * epsilon
        torch.testing.assert_close(visited[i], x_t, rtol=1e-9, atol=1e-9)
    assert "noise_after_clipping" not in sampler.without_effect(classifier=False)
    unclipped = DDIM(PROCESS, clipping=NoClipping(), num_steps=4, noise_after_clipping=after_clipping)
    assert "noise_after_clipping" in unclipped.without_effect(classifier=False)


@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(LinearSchedule(50, 0.0, 0.98))], ids=str)
@pytest.mark.parametrize("num_steps", [1, 7, 40])
def test_eta_1_is_ancestral_sampling_with_the_small_variance(process: GaussianProcess, num_steps: int) -> None:
    denoiser = GaussianOracle(process, 0.3, 0.5)
    implicit, _ = walk(DDIM(process, num_steps=num_steps, eta=1.0), denoiser, RecordedNoise((5, 3, 8, 6)))
    ancestral, _ = walk(
        Ancestral(process, num_steps=num_steps, variance=FixedSmall()), denoiser, RecordedNoise((5, 3, 8, 6))
    )
    torch.testing.assert_close(implicit, ancestral, rtol=1e-9, atol=1e-9)


def test_with_eta_0_only_the_initial_noise_is_drawn() -> None:
    sampler, noise = DDIM(PROCESS, num_steps=7), RecordedNoise((5, 3, 8, 6))
    first = sampler.sample(GaussianOracle(PROCESS, 0.3, 0.5), noise, Condition())
    second = sampler.sample(GaussianOracle(PROCESS, 0.3, 0.5), RecordedNoise((5, 3, 8, 6)), Condition())
    assert len(noise.drawn) == 1
    assert torch.equal(first, second)


def test_with_eta_above_0_noise_is_drawn_once_per_step() -> None:
    noise = RecordedNoise((5, 3, 8, 6))  # one for the start, none in the last step
    DDIM(PROCESS, num_steps=7, eta=0.2).sample(GaussianOracle(PROCESS), noise, Condition())
    assert len(noise.drawn) == 7


def test_the_error_of_the_flow_falls_with_the_number_of_steps() -> None:
    process = GaussianProcess(LinearSchedule())
    errors = []
    for num_steps in (10, 50, 250):
        sampler = DDIM(process, num_steps=num_steps, clipping=NoClipping())
        # The exact flow from N(0, 1) to N(0, 1) leaves every pixel unchanged.
        noise = ImageNoise(range(5), (3, 8, 6)).draw()
        images = sampler.sample(GaussianOracle(process, 0.0, 1.0), ImageNoise(range(5), (3, 8, 6)), Condition())
        errors.append(float((images - noise).square().mean().sqrt()))
    assert errors == pytest.approx(sorted(errors, reverse=True))
    assert errors[-1] < 0.01


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\], got {eta}"):
        DDIM(PROCESS, num_steps=4, eta=eta)
