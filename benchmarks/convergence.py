"""Measure the order of convergence of each sampler; print a table and draw docs/convergence.png.

    PYTHONPATH=tests python benchmarks/convergence.py

The data follow a mixture of Gaussians, for which the denoiser and the probability flow are known exactly. The error is
the distance to the exact solution of the flow at a fixed time above 0, for five step counts, on the schedules vp and
edm.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot

from diffusion_lab.process import EDMSchedule, GaussianProcess, VPSchedule
from diffusion_lab.samplers import DDIM, DPMSolver, Euler, GivenNoise, Heun, ListedTimes, NoClipping, Sampler, UniPC
from support.oracles import MixtureOracle, walk

STEPS = (32, 64, 128, 256, 512)
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim, eta 0": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver": DPMSolver,
    "unipc, order 1": lambda *args, **settings: UniPC(*args, order=1, **settings),
    "unipc, order 2": lambda *args, **settings: UniPC(*args, order=2, **settings),
}
SCHEDULES = {"vp": (VPSchedule(), 0.05), "edm": (EDMSchedule(), 0.1)}
"""Schedule and last time, by name."""


def times(process: GaussianProcess, end: float, num_steps: int) -> list[float]:
    """Return times from t_max to `end`, evenly spaced in log-SNR."""
    schedule = process.schedule
    first, last = schedule.log_snr(torch.tensor([schedule.t_max, end], dtype=torch.float64)).tolist()
    inner = schedule.at_log_snr(torch.linspace(first, last, num_steps + 1, dtype=torch.float64)).tolist()
    return [schedule.t_max, *inner[1:-1], end]


def main() -> None:
    noise = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for axes, (name, (schedule, end)) in zip(panels, SCHEDULES.items(), strict=True):
        process = GaussianProcess(schedule)
        denoiser = MixtureOracle(process)
        start = noise * schedule.prior_std(torch.tensor(schedule.t_max))
        exact = denoiser.flow(start, schedule.t_max, end)
        for label, build in SAMPLERS.items():
            errors = []
            for num_steps in STEPS:
                grid = ListedTimes(times(process, end, num_steps))
                sampler = build(process, num_steps=num_steps + 1, time_grid=grid, clipping=NoClipping())
                visited, _ = walk(sampler, denoiser, GivenNoise(noise))
                errors.append(float((visited[-2] - exact).square().mean().sqrt()))
            slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
            axes.loglog(STEPS, errors, "--o" if label == "euler" else "-o", markersize=3, label=f"{label}: {slope:.2f}")
            print(f"{name:4} {label:16} slope {slope:.2f}  errors {' '.join(f'{error:.1e}' for error in errors)}")
        axes.set(title=f"{name}, from t = {schedule.t_max:g} to {end:g}", xlabel="steps")
        axes.set_xticks(STEPS, [str(num_steps) for num_steps in STEPS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(title="fitted order")
    panels[0].set_ylabel("root mean square error")
    figure.savefig(Path(__file__).parents[1] / "docs" / "convergence.png", dpi=110)


if __name__ == "__main__":
    main()
