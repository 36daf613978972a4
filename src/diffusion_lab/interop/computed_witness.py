"""Witnesses of original networks that can be loaded in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.interop.witness import Witness
from diffusion_lab.process import TableSchedule


@dataclass(frozen=True)
class Trajectory:
    """Deterministic DDIM of other code.

    times: decreasing step indices.  clip: whether each estimate of x_0 is clipped to [-1, 1].
    step: function of (output of the network, step index, x_t) that returns the images at the next time.
    """

    times: list[int]
    clip: bool
    step: Callable[[Tensor, int, Tensor], Tensor]


@dataclass(frozen=True)
class Original:
    """A network of other code.

    output: function of (x [B, C, H, W], time [B], label [B] or None), float32.
    trajectory: DDIM of the same code; None if there is none.
    """

    output: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    trajectory: Trajectory | None = None


def computed_witness(original: Original, module: Any, *, num_images: int = 4, seed: int = 0) -> Witness:
    """Return a witness of an original network.

    module: module of the imported run, which defines the shapes, the classes and the times of the inputs.
    """
    generator, network, schedule = torch.Generator().manual_seed(seed), module.network, module.process.schedule
    shape = (num_images, network.in_channels, network.resolution, network.resolution)
    x = torch.randn(shape, generator=generator)
    last = schedule.num_timesteps - 1 if isinstance(schedule, TableSchedule) else 1
    time = torch.linspace(0, last, num_images).round()
    num_classes = network.labels.num_classes
    label = torch.randint(num_classes, (num_images,), generator=generator) if num_classes else None
    with torch.no_grad():
        output, trajectory = original.output(x, time, label), original.trajectory
        if trajectory is None:
            return Witness(x, time, output, label)
        noise = torch.randn(shape, generator=generator)
        samples = _samples(original, trajectory, noise, label)
    times = torch.tensor(trajectory.times)
    return Witness(x, time, output, label, noise=noise, times=times, clip=trajectory.clip, samples=samples)


def _samples(original: Original, trajectory: Trajectory, noise: Tensor, label: Tensor | None) -> Tensor:
    x_t = noise
    for time in trajectory.times:
        output = original.output(x_t, torch.full((len(x_t),), float(time)), label)
        x_t = trajectory.step(output, time, x_t)
    return x_t
