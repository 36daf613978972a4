"""The samplers that the shared laws hold for. A new one is one more line in SAMPLERS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
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
    return [times[0], *twice(times[1:])]  # the last step ends at 0, where nothing is asked


def ten_updates_and_the_image(times: Sequence[float]) -> list[float]:
    return [t for t in times for _ in range(10)] + [times[-1]]


@dataclass(frozen=True)
class Case:
    """A sampler with its options, and what the laws expect of it.

    asked: the times of a list -> those that the denoiser is asked at; None where it has its own, for the reason `why`.
    num_draws: of noise in num_steps steps from t_max.  num_steps: enough to recover a distribution.
    bias: of the deviation that is left then, for N(0.3, 0.5^2).
    """

    build: Build
    asked: Callable[[Sequence[float]], list[float]] | None = once
    num_draws: Callable[[int], int] = lambda num_steps: 1
    num_steps: int = 250
    bias: float = 0.015
    why: str = ""


def as_many_as_steps(num_steps: int) -> int:
    return num_steps  # one to start from, none in the last step


CHURN = Churn(amount=20.0, noise_scale=1.003)
churned = partial(Case, asked=None, num_draws=as_many_as_steps, why="starts each step at a later time: test_churn.py")
noisy = partial(Case, num_draws=as_many_as_steps)
corrected = partial(Case, asked=twice, num_draws=lambda num_steps: 2 * num_steps, num_steps=125)

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
    "unipc, order 1": Case(partial(UniPC, order=1), num_steps=125),
    "unipc, order 2": Case(partial(UniPC, order=2), num_steps=125),
    "unipc, order 3": Case(partial(UniPC, order=3), num_steps=125),
    # A step of finite size widens every level's distribution (Song & Ermon 2020, section 3.3).
    "langevin": Case(
        AnnealedLangevin, ten_updates_and_the_image, lambda num_steps: 1 + 10 * num_steps, num_steps=150, bias=0.05
    ),
    "predictor_corrector, large": corrected(PredictorCorrector),
    "predictor_corrector, small": corrected(partial(PredictorCorrector, variance=FixedSmall())),
    "rk45": Case(RK45, asked=None, why="error control chooses the steps; the list says when on_step is told"),
}
every_sampler = pytest.mark.parametrize("case", SAMPLERS.values(), ids=SAMPLERS.keys())


class Spy:
    """A denoiser that answers 0.5 everywhere and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, Condition]] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        self.asked.append((x_t, t, condition))
        return Estimate(torch.full_like(x_t, 0.5))
