"""RePaint compared with the scheduler of diffusers."""

from itertools import pairwise

import pytest
import torch
from diffusers import RePaintScheduler
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.inverse_problems import Inpainting, Measurement, RePaint
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.samplers import DDIM, NoClipping

NUM_STEPS, SHAPE = 12, (3, 2, 4, 6)
BETAS = (0.01, 0.3)
PROCESS = GaussianProcess(LinearSchedule(NUM_STEPS, *BETAS))
HOLE = torch.arange(6).expand(4, 6) >= 2


class GivenDraws:
    """A noise source with a list of draws."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.remaining = list(draws)

    def draw(self) -> Tensor:
        return self.remaining.pop(0)


def scheduler_of(repaint: RePaint) -> RePaintScheduler:
    """Return a scheduler whose steps are those of its schedule: with longer ones, undo_step adds other variances."""
    scheduler = RePaintScheduler(NUM_STEPS, *BETAS, eta=1.0, clip_sample=False)
    scheduler.set_timesteps(NUM_STEPS, repaint.jump_length, repaint.num_resamples)
    return scheduler


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predicted_noise(x_t: Tensor, time: Tensor) -> Tensor:
    """Return noise that depends on the neighbors in x_t and on the time [B]."""
    return torch.tanh(x_t.roll(1, dims=3)) * (0.5 + time.view(-1, 1, 1, 1) / NUM_STEPS)


def sample_with_scheduler(repaint: RePaint, known: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return images after the steps of the scheduler along our states, and the draws with the same noise for ours."""
    scheduler, mask = scheduler_of(repaint), (~HOLE).float()
    draws = [torch.randn(SHAPE, generator=generator(0))]
    alpha_bar = scheduler.alphas_cumprod
    # Ours also replaces the known part of the initial noise, which the pipeline of diffusers does not.
    x_t = draws[0] * torch.where(HOLE, 1, (1 - alpha_bar[-1]).sqrt()) + mask * alpha_bar[-1].sqrt() * known
    for seed, (k, following) in enumerate(pairwise(repaint.states(NUM_STEPS)), start=1):
        timestep, last = NUM_STEPS - 1 - k, NUM_STEPS - 1 - following
        if following > k:
            output = predicted_noise(x_t, torch.full((len(x_t),), float(timestep)))
            x_t = scheduler.step(output, timestep, x_t, known, mask, generator(seed)).prev_sample
            # The scheduler adds the same noise to the known and to the unknown part.
            draws += 2 * [torch.randn(SHAPE, generator=generator(seed))] if timestep > 0 else []
            continue
        added, noise = torch.zeros(SHAPE), generator(seed)
        for t in range(timestep + 1, last + 1):
            state = noise.get_state()
            added = scheduler.undo_step(added, t, noise)
            x_t = scheduler.undo_step(x_t, t, noise.set_state(state))
        draws.append(added / (1 - alpha_bar[last] / alpha_bar[timestep]).sqrt())
    return x_t, draws


@pytest.mark.parametrize("repaint", [RePaint(3, 1), RePaint(1, 3), RePaint(2, 2), RePaint(5, 3)])
def test_steps_and_jumps_are_those_of_the_scheduler_with_the_same_noise(repaint: RePaint) -> None:
    known = torch.rand(SHAPE, generator=generator(100)) * 2 - 1
    expected, draws = sample_with_scheduler(repaint, known)
    sampler = DDIM(PROCESS, NUM_STEPS, eta=1.0, clipping=NoClipping())
    measurement, noise = Measurement.of(Inpainting(SHAPE[1:], HOLE), known), GivenDraws(draws)
    images = repaint.sample(sampler, Denoiser(predicted_noise, PROCESS, Epsilon()), measurement, noise)
    assert not noise.remaining
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("repaint", [RePaint(1, 3), RePaint(2, 2), RePaint(5, 3)])
def test_the_visited_states_are_the_timesteps_of_the_scheduler(repaint: RePaint) -> None:
    # The pipeline of diffusers makes each jump one step later than the paper's code: it evaluates the network at a
    # timestep before it jumps back from there. The number of evaluations is the same.
    visited = []
    for k, following in pairwise(repaint.states(NUM_STEPS)):
        visited += [NUM_STEPS - 1 - state for state in ([k] if following > k else range(k, following, -1))]
    timesteps = scheduler_of(repaint).timesteps.tolist()
    assert visited == timesteps
    evaluations = sum(t < previous for previous, t in pairwise([NUM_STEPS, *timesteps]))
    assert repaint.num_evaluations(DDIM(PROCESS, NUM_STEPS)) == evaluations
