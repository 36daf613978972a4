"""The number of network evaluations that each sampler states, against the calls of a network."""

import inspect
from collections import Counter

import pytest
import torch
from torch import Tensor

from diffusion_lab import samplers
from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate
from diffusion_lab.networks import Blocks, Condition, UNet
from diffusion_lab.process import (
    X0,
    CosineSchedule,
    CustomSchedule,
    EDMSchedule,
    GaussianProcess,
    RectifiedFlowSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import RK45, AnnealedLangevin, Heun, KarrasTimes, PredictorCorrector, Sampler
from support.every_sampler import SAMPLERS, Case
from support.oracles import GaussianOracle, MixtureOracle

COSINE = GaussianProcess(CosineSchedule(40))
FLOW = GaussianProcess(RectifiedFlowSchedule())  # starts from pure noise, alpha_t = 0
NO_NOISE_AT_FIRST = GaussianProcess(CustomSchedule([0.0, 0.2, 0.4]))  # sigma_t = 0 at the last time of the list
FIXED = {name: case for name, case in SAMPLERS.items() if case.build is not RK45}


def num_calls(sampler: Sampler) -> int:
    """Return the number of forward passes of a network in one call of `sample`."""
    torch.manual_seed(0)
    blocks = Blocks(num_groups=4)
    network = UNet(1, 1, resolution=8, channels=8, channel_multipliers=(1,), attention_resolutions=(), blocks=blocks)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    denoiser = Denoiser(network.eval(), sampler.process, X0())
    sampler.sample(denoiser, ImageNoise(range(2), (1, 8, 8)), Condition())
    return len(calls)


@pytest.mark.parametrize("case", FIXED.values(), ids=FIXED.keys())
@pytest.mark.parametrize("process", [COSINE, FLOW, NO_NOISE_AT_FIRST], ids=["cosine", "flow", "no noise at first"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_stated_number_of_evaluations_is_the_number_of_network_calls(
    case: Case, process: GaussianProcess, num_steps: int
) -> None:
    sampler = case.build(process, num_steps=num_steps)
    assert sampler.num_evaluations == num_calls(sampler)


def test_every_exported_sampler_is_compared() -> None:
    exported = {value for value in vars(samplers).values() if inspect.isclass(value) and issubclass(value, Sampler)}
    concrete = {kind for kind in exported if not inspect.isabstract(kind)}
    assert {type(case.build(COSINE, num_steps=2)) for case in FIXED.values()} | {RK45} == concrete


def test_the_evaluations_of_the_papers_are_stated() -> None:
    edm = GaussianProcess(EDMSchedule())
    assert Heun(edm, 18, time_grid=KarrasTimes()).num_evaluations == 35  # Karras et al. (2022), Table 2, CIFAR-10
    assert Heun(FLOW, 18).num_evaluations == 34
    assert PredictorCorrector(COSINE, 10, num_corrections=2).num_evaluations == 30
    assert AnnealedLangevin(COSINE, 10, num_updates=5).num_evaluations == 51


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("process", [COSINE, FLOW], ids=["cosine", "flow"])
def test_rk45_states_a_typical_number_for_its_tolerance(process: GaussianProcess, tolerance: float) -> None:
    sampler, counts = RK45(process, rtol=tolerance, atol=tolerance), Counter[str]()
    oracles: dict[str, DenoiserLike] = {"smooth": MixtureOracle(process), "clipped": GaussianOracle(process, 0.3, 0.5)}
    for name, oracle in oracles.items():

        def counting(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
            counts[name] += 1  # noqa: B023 (called in this iteration)
            return oracle(x_t, t, condition)  # noqa: B023

        sampler.sample(counting, ImageNoise(range(4), (3, 8, 6)), Condition())
    assert counts["smooth"] / 2 < sampler.num_evaluations < 2 * counts["clipped"]


def test_rk45_evaluates_the_network_once_at_a_single_time() -> None:
    sampler = RK45(COSINE, num_steps=1)
    assert sampler.num_evaluations == num_calls(sampler) == 1
