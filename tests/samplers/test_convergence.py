"""The error of each deterministic sampler falls with the number of steps at the order stated in its paper."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from diffusion_lab.process import EDMSchedule, GaussianProcess, NoiseSchedule, VPSchedule
from diffusion_lab.samplers import DDIM, DPMSolver, Euler, Heun, ListedTimes, NoClipping, UniPC
from support.every_sampler import Build
from support.oracles import MixtureOracle, RecordedNoise, walk

SHAPE = (4, 1, 16, 12)
NUM_STEPS = (32, 64, 128, 256, 512)

ORDERS = {
    "euler": (Euler, 1),
    "ddim": (DDIM, 1),
    "heun": (Heun, 2),
    "dpm_solver": (DPMSolver, 2),
    # The corrector raises the order of the predictor by one (Zhao et al. 2023, theorem 3.1).
    "unipc, order 1": (partial(UniPC, order=1), 2),
    "unipc, order 2": (partial(UniPC, order=2), 3),
    "unipc, order 3": (partial(UniPC, order=3), 4),
}


@pytest.mark.parametrize(("build", "order"), ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize(
    ("schedule", "end"),
    [pytest.param(VPSchedule(), 0.05, id="vp", marks=pytest.mark.full), pytest.param(EDMSchedule(), 0.1, id="edm")],
)
def test_the_error_at_a_time_above_0_falls_at_the_order(
    build: Build, order: int, schedule: NoiseSchedule, end: float
) -> None:
    errors = [error(build, schedule, end, num_steps) for num_steps in NUM_STEPS]
    assert all(fewer > more for fewer, more in pairwise(errors))
    assert slope(errors) == pytest.approx(order, abs=0.25)


def error(build: Build, schedule: NoiseSchedule, end: float, num_steps: int) -> float:
    """Return the root mean square distance to the exact flow after num_steps steps from t_max to `end`."""
    first, last = schedule.log_snr(torch.tensor([schedule.t_max, end], dtype=torch.float64)).tolist()
    between = schedule.at_log_snr(torch.linspace(first, last, num_steps + 1, dtype=torch.float64))[1:-1]
    times = [schedule.t_max, *between.tolist(), end]
    process = GaussianProcess(schedule)
    oracle, noise = MixtureOracle(process), RecordedNoise(SHAPE)
    sampler = build(process, num_steps=len(times), time_grid=ListedTimes(times), clipping=NoClipping())
    reached = walk(sampler, oracle, noise)[0][-2]  # the last step continues to 0
    start = noise.drawn[0] * float(schedule.prior_std(torch.tensor(schedule.t_max)))
    return float((reached - oracle.flow(start, schedule.t_max, end)).square().mean().sqrt())


def slope(errors: list[float]) -> float:
    """Return the negative slope of log error over log steps by least squares."""
    x, y = ([math.log(value) for value in values] for values in (NUM_STEPS, errors))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return -covariance / sum((a - x_mean) ** 2 for a in x)
