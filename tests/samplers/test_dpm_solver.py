"""DPM-Solver++(2M) and its stochastic form against the formulas of Lu et al. (2022)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, FixedSmall, GaussianProcess, JSDSchedule
from diffusion_lab.samplers import DDIM, Ancestral, DPMSolver, DPMSolverSDE, ListedTimes, NoClipping
from support.every_sampler import fingerprint_differences
from support.oracles import MixtureOracle, RecordedNoise, walk

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)
STEPS = [40, 31, 20, 13, 6, 1]
GRID = ListedTimes([step / 40 for step in STEPS])
SHAPE = (5, 3, 8, 6)


def estimate(x_t: Tensor, step: int) -> Tensor:
    return MixtureOracle(PROCESS)(x_t, torch.full((5,), step / 40, dtype=torch.float64), Condition()).x_0


def level(step: int) -> tuple[float, float, float]:
    """Return alpha, sigma and lambda = log(alpha / sigma)."""
    alpha_bar = float(SCHEDULE.alpha_bar[step - 1])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), math.log(alpha_bar / (1 - alpha_bar)) / 2


def extrapolated(estimates: list[tuple[float, Tensor]], h: float) -> Tensor:
    """Return D_i of algorithm 2 from pairs (lambda, x_0), the newest last."""
    if len(estimates) == 1:
        return estimates[0][1]
    (previous_lambda, previous_x_0), (last_lambda, last_x_0) = estimates[-2:]
    r = (last_lambda - previous_lambda) / h
    return (1 + 1 / (2 * r)) * last_x_0 - 1 / (2 * r) * previous_x_0


def test_each_step_is_algorithm_2_of_lu_et_al() -> None:
    noise = RecordedNoise(SHAPE)
    visited, _ = walk(
        DPMSolver(PROCESS, num_steps=6, time_grid=GRID, clipping=NoClipping()), MixtureOracle(PROCESS), noise
    )
    x, estimates = noise.drawn[0], []
    for i, (start, end) in enumerate(pairwise(STEPS)):
        (_, sigma, lambda_t), (alpha_next, sigma_next, lambda_s) = level(start), level(end)
        estimates.append((lambda_t, estimate(x, start)))
        h = lambda_s - lambda_t
        x = sigma_next / sigma * x - alpha_next * (math.exp(-h) - 1) * extrapolated(estimates, h)
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(visited[-1], estimate(x, 1), rtol=1e-9, atol=1e-9)
    assert len(noise.drawn) == 1


def test_each_step_of_the_stochastic_form_is_equation_18_of_lu_et_al() -> None:
    noise = RecordedNoise(SHAPE)
    visited, _ = walk(
        DPMSolverSDE(PROCESS, num_steps=6, time_grid=GRID, clipping=NoClipping()), MixtureOracle(PROCESS), noise
    )
    x, estimates = noise.drawn[0], []
    for i, (start, end) in enumerate(pairwise(STEPS)):
        (_, sigma, lambda_t), (alpha_next, sigma_next, lambda_s) = level(start), level(end)
        estimates.append((lambda_t, estimate(x, start)))
        h = lambda_s - lambda_t
        x = sigma_next / sigma * math.exp(-h) * x + alpha_next * (1 - math.exp(-2 * h)) * extrapolated(estimates, h)
        x = x + sigma_next * math.sqrt(1 - math.exp(-2 * h)) * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(visited[-1], estimate(x, 1), rtol=1e-9, atol=1e-9)
    assert len(noise.drawn) == 6


def test_each_step_of_the_solver_type_heun_is_that_of_k_diffusion() -> None:
    noise, sigmas = RecordedNoise(SHAPE), [math.exp(-level(step)[2]) for step in STEPS]
    sampler = DPMSolverSDE(PROCESS, num_steps=6, time_grid=GRID, clipping=NoClipping(), solver_type="heun")
    visited, _ = walk(sampler, MixtureOracle(PROCESS), noise)
    alphas = [level(step)[0] for step in STEPS]
    x, before, last_h = noise.drawn[0] / alphas[0], None, 0.0  # x / alpha, the variable of sample_dpmpp_2m_sde
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised, h = estimate(alphas[i] * x, STEPS[i]), math.log(sigma / sigma_next)  # eta = 1
        x = sigma_next / sigma * math.exp(-h) * x + (1 - math.exp(-2 * h)) * denoised
        if before is not None:
            x = x + ((1 - math.exp(-2 * h)) / (-2 * h) + 1) * h / last_h * (denoised - before)
        x = x + sigma_next * math.sqrt(1 - math.exp(-2 * h)) * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], alphas[i + 1] * x, rtol=1e-9, atol=1e-9)
        before, last_h = denoised, h


def test_the_default_solver_type_is_midpoint_and_fingerprints_contain_the_other() -> None:
    midpoint, heun = (DPMSolverSDE(PROCESS, 6, solver_type=name) for name in ("midpoint", "heun"))
    assert DPMSolverSDE(PROCESS, 6) == midpoint  # test_each_step_of_the_stochastic_form_is_equation_18_of_lu_et_al
    assert fingerprint_differences(midpoint, heun) == {"solver_type": ["missing", "heun"]}
    with pytest.raises(ValueError, match="solver_type must be midpoint or heun, got euler"):
        DPMSolverSDE(PROCESS, 6, solver_type="euler")


@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(JSDSchedule(40))], ids=str)
def test_without_extrapolation_the_steps_are_those_of_ddim_and_of_ancestral_sampling(process: GaussianProcess) -> None:
    # The last of two steps is never extrapolated. On JSD the first step starts without signal: its length is infinite.
    grid, oracle = ListedTimes([1.0, 0.5]), MixtureOracle(process)
    flow, _ = walk(DPMSolver(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    ddim, _ = walk(DDIM(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    torch.testing.assert_close(flow, ddim, rtol=1e-9, atol=1e-9)
    chain, _ = walk(DPMSolverSDE(process, 2, time_grid=grid), oracle, RecordedNoise(SHAPE))
    ancestral = Ancestral(process, 2, time_grid=grid, variance=FixedSmall())
    torch.testing.assert_close(chain, walk(ancestral, oracle, RecordedNoise(SHAPE))[0], rtol=1e-9, atol=1e-9)
