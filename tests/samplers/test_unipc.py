import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, EDMSchedule, GaussianProcess, JSDSchedule
from diffusion_lab.samplers import DDIM, ListedTimes, NoClipping, UniPC
from support.oracles import MixtureOracle, RecordedNoise, walk

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)
STEPS = [40, 33, 24, 17, 11, 5, 1]
SHAPE = (5, 3, 8, 6)


def weights(ratios: list[float], h: float) -> list[float]:
    """Solve R rho = phi / B, eq. 9 of Zhao et al. (2023), in the data form of appendix A with B(h) = exp(-h) - 1."""
    if len(ratios) == 1:
        return [0.5]
    b, factorial, h_phi = [], 1, math.expm1(-h) / -h - 1
    for n in range(1, len(ratios) + 1):
        b.append(h_phi * factorial / math.expm1(-h))
        factorial *= n + 1
        h_phi = h_phi / -h - 1 / factorial
    powers = torch.tensor([[r ** (n - 1) for r in ratios] for n in range(1, len(ratios) + 1)], dtype=torch.float64)
    rho: list[float] = torch.linalg.solve(powers, torch.tensor(b, dtype=torch.float64)).tolist()
    return rho


@pytest.mark.parametrize("order", [1, 2, 3])
def test_each_step_is_algorithm_1_of_zhao_et_al(order: int) -> None:
    noise = RecordedNoise(SHAPE)
    grid = ListedTimes([step / 40 for step in STEPS])
    sampler = UniPC(PROCESS, num_steps=7, order=order, time_grid=grid, clipping=NoClipping())
    visited, _ = walk(sampler, MixtureOracle(PROCESS), noise)

    def model(x: Tensor, step: int) -> Tensor:
        return MixtureOracle(PROCESS)(x, torch.full((5,), step / 40, dtype=torch.float64), Condition()).x_0

    alpha = {step: math.sqrt(SCHEDULE.alpha_bar[step - 1]) for step in STEPS}
    sigma = {step: math.sqrt(1 - SCHEDULE.alpha_bar[step - 1]) for step in STEPS}
    lam = {step: math.log(alpha[step] / sigma[step]) for step in STEPS}
    x, buffer = noise.drawn[0], [(lam[40], model(noise.drawn[0], 40))]
    for i, (start, end) in enumerate(pairwise(STEPS)):
        h, m_0 = lam[end] - lam[start], buffer[-1][1]
        first = sigma[end] / sigma[start] * x - alpha[end] * math.expm1(-h) * m_0
        older_estimates = buffer[-order:-1]
        ratios = [(older_lambda - lam[start]) / h for older_lambda, _ in older_estimates]
        slopes = [(m - m_0) / r for r, (_, m) in zip(ratios, older_estimates, strict=True)]
        rhos = weights(ratios, h) if older_estimates else []
        sums = sum((rho * d for rho, d in zip(rhos, slopes, strict=True)), 0 * m_0)
        predicted = first - alpha[end] * math.expm1(-h) * sums  # UniP
        torch.testing.assert_close(visited[i], predicted, rtol=1e-9, atol=1e-9)
        m_t = model(predicted, end)
        ratios, slopes = [*ratios, 1.0], [*slopes, m_t - m_0]
        sums = sum((rho * d for rho, d in zip(weights(ratios, h), slopes, strict=True)), 0 * m_0)
        x = first - alpha[end] * math.expm1(-h) * sums  # UniC, with the estimate that is also that of the next step
        buffer.append((lam[end], m_t))
    torch.testing.assert_close(visited[-1], buffer[-1][1], rtol=1e-9, atol=1e-9)


def test_three_estimates_are_exact_if_x_0_is_quadratic_in_log_snr() -> None:
    # With alpha = 1 and sigma = exp(-l), the flow is d(x / sigma) / dl = exp(l) x_0(l): for x_0 = a + b l + c l^2,
    # x = a + b (l - 1) + c (l^2 - 2 l + 2) + constant * sigma, of any constant.
    a, b, c = 0.3, -0.2, 0.05

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        log = -t.log().view(-1, 1, 1, 1)
        return Estimate((a + b * log + c * log**2).expand_as(x_t))

    times = [20.0, 11.0, 6.0, 3.5, 1.8, 1.0, 0.45, 0.2]
    sampler = UniPC(
        GaussianProcess(EDMSchedule()), len(times), order=3, time_grid=ListedTimes(times), clipping=NoClipping()
    )
    visited, _ = walk(sampler, denoiser, RecordedNoise(SHAPE))
    sigma = torch.tensor(times[1:], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    log = -sigma.log()
    constant = (visited[:-1] - (a + b * (log - 1) + c * (log**2 - 2 * log + 2))) / sigma
    # From the third step on there are three estimates. An inexact correction would also change the constant.
    torch.testing.assert_close(constant[3:], constant[2:-1], rtol=1e-9, atol=1e-9)
    assert float((constant[1] - constant[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("order", [0, 4])
def test_orders_other_than_1_to_3_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"order must be 1, 2 or 3, got {order}"):
        UniPC(PROCESS, num_steps=7, order=order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_step_after_a_start_without_signal_is_of_first_order(order: int) -> None:
    # The log-SNR of the start is infinite: its estimate is not used again, and the next step is like a first step.
    process, times = GaussianProcess(JSDSchedule(40)), [1.0, 0.8, 0.6, 0.4, 0.2]
    visited, _ = walk(
        UniPC(process, 5, order, ListedTimes(times), NoClipping()), MixtureOracle(process), RecordedNoise(SHAPE)
    )
    assert bool(visited.isfinite().all())
    ddim, _ = walk(DDIM(process, 2, time_grid=ListedTimes([1.0, 0.8])), MixtureOracle(process), RecordedNoise(SHAPE))
    torch.testing.assert_close(visited[0], ddim[0], rtol=1e-9, atol=1e-9)
