"""All samplers, for tests of their common properties. Add a new sampler to SAMPLERS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.fingerprints import describe, differences
from diffusion_lab.networks import Condition
from diffusion_lab.process import FixedLarge, FixedSmall
from diffusion_lab.samplers import (
    DDIM,
    RK45,
    Ancestral,
    AnnealedLangevin,
    Churn,
    DPMSolver,
    DPMSolverSDE,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
    UniPC,
)

Build = Callable[..., Sampler]


def once(times: Sequence[float]) -> list[float]:
    return list(times)


def twice(times: Sequence[float]) -> list[float]:
    return [t for t in times for _ in range(2)]


def at_both_ends(times: Sequence[float]) -> list[float]:
    # The last step ends at 0, where the denoiser is not called. A step from pure noise has no correction at its end.
    corrected = times[1:] if times[0] < 1 else times[2:]
    return [times[0], *(time for time in times[1:] if time not in corrected), *twice(corrected)]


def ten_updates_and_the_last_time(times: Sequence[float]) -> list[float]:
    return [t for t in times for _ in range(10)] + [times[-1]]


@dataclass(frozen=True)
class Case:
    """A sampler with its options and its expected properties.

    call_times: list of times -> times of the denoiser calls; None if the sampler chooses other times, for `reason`.
    num_draws: number of noise draws in num_steps steps from t_max.
    num_steps: steps that are sufficient to recover a distribution.
    bias: error of the std after these steps, for N(0.3, 0.5^2).
    """

    build: Build
    call_times: Callable[[Sequence[float]], list[float]] | None = once
    num_draws: Callable[[int], int] = lambda num_steps: 1
    num_steps: int = 250
    bias: float = 0.015
    reason: str = ""


def as_many_as_steps(num_steps: int) -> int:
    return num_steps  # one for the start, none in the last step


CHURN = Churn(amount=20.0, noise_scale=1.003)
churned = partial(
    Case, call_times=None, num_draws=as_many_as_steps, reason="starts each step at a later time: test_churn.py"
)
noisy = partial(Case, num_draws=as_many_as_steps)
corrected = partial(Case, call_times=twice, num_draws=lambda num_steps: 2 * num_steps, num_steps=125)

SAMPLERS = {
    "ancestral, fixed large": noisy(partial(Ancestral, variance=FixedLarge())),
    "ancestral, fixed small": noisy(partial(Ancestral, variance=FixedSmall()), bias=0.02),
    "ddim, eta 0": Case(partial(DDIM, eta=0.0)),
    "ddim, eta 0.5": noisy(partial(DDIM, eta=0.5)),
    "ddim, eta 1": noisy(partial(DDIM, eta=1.0), bias=0.02),
    "euler": Case(Euler),
    "euler, churn": churned(partial(Euler, churn=CHURN), bias=0.02),
    "heun": Case(Heun, at_both_ends, num_steps=125),
    "heun, churn": churned(partial(Heun, churn=CHURN), num_steps=125),
    "dpm_solver": Case(DPMSolver, num_steps=125),
    "dpm_solver_sde": noisy(DPMSolverSDE),
    "dpm_solver_sde, heun": noisy(partial(DPMSolverSDE, solver_type="heun")),
    "unipc, order 1": Case(partial(UniPC, order=1), num_steps=125),
    "unipc, order 2": Case(partial(UniPC, order=2), num_steps=125),
    "unipc, order 3": Case(partial(UniPC, order=3), num_steps=125),
    # Steps of finite size increase the variance at every noise level (Song & Ermon 2020, section 3.3).
    "langevin": Case(
        AnnealedLangevin, ten_updates_and_the_last_time, lambda num_steps: 1 + 10 * num_steps, num_steps=150, bias=0.05
    ),
    "predictor_corrector, large": corrected(PredictorCorrector),
    "predictor_corrector, small": corrected(partial(PredictorCorrector, variance=FixedSmall())),
    # The predictor "reverse_diffusion" is exact for small steps only: test_predictor_corrector.py.
    "rk45": Case(
        RK45, call_times=None, reason="error control chooses the steps; the list only sets the times of on_step"
    ),
}
every_sampler = pytest.mark.parametrize("case", SAMPLERS.values(), ids=SAMPLERS.keys())


def fingerprint_differences(one: Sampler, other: Sampler, *, classifier: bool = False) -> dict[str, list[Any]]:
    """Return the differences between the fingerprints of two samplers.  classifier: whether a classifier guides."""
    samplers = (one, other)
    return differences([describe(each, ("process", *each.without_effect(classifier=classifier))) for each in samplers])


class Spy:
    """A denoiser with the estimate 0.5 everywhere that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Condition]] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        self.calls.append((x_t, t, condition))
        return Estimate(torch.full_like(x_t, 0.5))
