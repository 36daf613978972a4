"""The times that a sampler visits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion_lab.process import NoiseSchedule


class TimeGrid(ABC):
    """A rule for the times between noise and data."""

    @abstractmethod
    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> tuple[float, ...]:
        """num_steps times of the schedule, strictly decreasing, all above 0.  Raises ValueError where it has fewer."""


@dataclass(frozen=True)
class UniformTimes(TimeGrid):
    """Evenly spaced from the first step to the last, both included (Nichol & Dhariwal 2021, section 4, code)."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> tuple[float, ...]:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        even = torch.linspace(schedule.t_max, schedule.t_min, num_steps, dtype=torch.float64)
        times = tuple(schedule.nearest(even).tolist())
        if len(set(times)) < num_steps:
            raise ValueError(f"num_steps must be at most the schedule's {len(set(times))} steps, got {num_steps}.")
        return times


@dataclass(frozen=True)
class ListedTimes(TimeGrid):
    """Exactly these times, decreasing."""

    times: Sequence[float]

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> tuple[float, ...]:
        if num_steps != len(self.times):
            raise ValueError(f"num_steps must be {len(self.times)}, the number of listed times, got {num_steps}.")
        return tuple(self.times)
