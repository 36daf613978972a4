"""DPM-Solver++(2M) and its stochastic form against the formulas of Lu et al. (2022)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, FixedSmall, GaussianProcess, JSDSchedule
from diffusion_lab.samplers import DDIM, Ancestral, DPMSolver, DPMSolverSDE, ListedTimes, NoClipping
from support.oracles import MixtureOracle, RecordedNoise, walk

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)
STEPS = [40, 31, 20, 13, 6, 1]
LIST = ListedTimes([step / 40 for step in STEPS])
SHAPE = (5, 3, 8, 6)


def estimates(x_t: Tensor, step: int) -> Tensor:
    return MixtureOracle(PROCESS)(x_t, torch.full((5,), step / 40, dtype=torch.float64), Condition()).x_0


def level(step: int) -> tuple[float, float, float]:
    """alpha, sigma and lambda = log(alpha / sigma)."""
    alpha_bar = float(SCHEDULE.alpha_bar[step - 1])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), math.log(alpha_bar / (1 - alpha_bar)) / 2


def extrapolated(known: list[tuple[float, Tensor]], h: float) -> Tensor:
    """D_i of algorithm 2 from the estimates so far and their lambda, newest last."""
    if len(known) == 1:
        return known[0][1]
    (before, older), (now, newer) = known[-2:]
    r = (now - before) / h
    return (1 + 1 / (2 * r)) * newer - 1 / (2 * r) * older


def test_each_step_is_algorithm_2_of_lu_et_al() -> None:
    noise = RecordedNoise(SHAPE)
    visited, _ = walk(
        DPMSolver(PROCESS, num_steps=6, time_grid=LIST, clipping=NoClipping()), MixtureOracle(PROCESS), noise
    )
    x, known = noise.drawn[0], []
    for i, (start, end) in enumerate(pairwise(STEPS)):
        (_, sigma, now), (alpha_next, sigma_next, then) = level(start), level(end)
        known.append((now, estimates(x, start)))
        h = then - now
        x = sigma_next / sigma * x - alpha_next * (math.exp(-h) - 1) * extrapolated(known, h)
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(visited[-1], estimates(x, 1), rtol=1e-9, atol=1e-9)
    assert len(noise.drawn) == 1


def test_each_step_of_the_stochastic_form_is_equation_18_of_lu_et_al() -> None:
    noise = RecordedNoise(SHAPE)
    visited, _ = walk(
        DPMSolverSDE(PROCESS, num_steps=6, time_grid=LIST, clipping=NoClipping()), MixtureOracle(PROCESS), noise
    )
    x, known = noise.drawn[0], []
    for i, (start, end) in enumerate(pairwise(STEPS)):
        (_, sigma, now), (alpha_next, sigma_next, then) = level(start), level(end)
        known.append((now, estimates(x, start)))
        h = then - now
        x = sigma_next / sigma * math.exp(-h) * x + alpha_next * (1 - math.exp(-2 * h)) * extrapolated(known, h)
        x = x + sigma_next * math.sqrt(1 - math.exp(-2 * h)) * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(visited[-1], estimates(x, 1), rtol=1e-9, atol=1e-9)
    assert len(noise.drawn) == 6


@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(JSDSchedule(40))], ids=str)
def test_where_nothing_can_be_extrapolated_a_step_is_ddims_and_the_ancestral_one(process: GaussianProcess) -> None:
    # One step before the last; jsd has no signal at its start, and so no step length to extrapolate along.
    grid, oracle = ListedTimes([1.0, 0.5]), MixtureOracle(process)
    flow, _ = walk(DPMSolver(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    ddim, _ = walk(DDIM(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    torch.testing.assert_close(flow, ddim, rtol=1e-9, atol=1e-9)
    chain, _ = walk(DPMSolverSDE(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    ancestral = Ancestral(process, 2, time_grid=grid, variance=FixedSmall())
    torch.testing.assert_close(chain, walk(ancestral, oracle, RecordedNoise(SHAPE))[0], rtol=1e-9, atol=1e-9)
