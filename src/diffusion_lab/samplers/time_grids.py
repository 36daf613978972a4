"""Time grids: the times at which a sampler evaluates the denoiser."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface, added
from diffusion_lab.process import NoiseSchedule, TableSchedule


class TimeGrid(DataclassInterface):
    """A rule that chooses times between noise and data."""

    @abstractmethod
    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        """Return num_steps times of the schedule, strictly decreasing and above 0.

        num_steps: number of times; None selects every step of a discrete schedule.
        Raises ValueError if num_steps is below 1, above the number of steps of a discrete schedule, or None for a
            continuous schedule.
        """


@dataclass(frozen=True)
class UniformTimes(TimeGrid):
    """Evenly spaced times from the first step to the last step, inclusive (Nichol & Dhariwal 2021, section 4, code).

    >>> from diffusion_lab import LinearSchedule, UniformTimes
    >>> UniformTimes()(LinearSchedule(), num_steps=4)
    (1.0, 0.667, 0.334, 0.001)
    """

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        times = torch.linspace(schedule.t_max, schedule.t_min, num_steps, dtype=torch.float64)
        return tuple(schedule.nearest(times).tolist())


@dataclass(frozen=True)
class TrailingTimes(TimeGrid):
    """Evenly spaced times from the last step down, without the first step (Lin et al. 2024, Table 2, "trailing").

    >>> from diffusion_lab import LinearSchedule, TrailingTimes
    >>> TrailingTimes()(LinearSchedule(), num_steps=4)
    (1.0, 0.75, 0.5, 0.25)
    """

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        last = max(schedule.t_max / num_steps, schedule.t_min)
        return tuple(schedule.nearest(torch.linspace(schedule.t_max, last, num_steps, dtype=torch.float64)).tolist())


@dataclass(frozen=True)
class LeadingTimes(TimeGrid):
    """Every (T // num_steps)-th step from the first step up, without the last (Song et al. 2021, code, "uniform").

    A continuous schedule is divided into num_steps equal parts, and each part contributes its smallest time.
    offset: number of steps by which each time of a discrete schedule is later (steps_offset in `diffusers`).
    Raises ValueError unless offset is at least 0. Calls raise ValueError if a time is after the last step.

    >>> from diffusion_lab import LeadingTimes, LinearSchedule
    >>> LeadingTimes()(LinearSchedule(), num_steps=4)
    (0.751, 0.501, 0.251, 0.001)
    """

    offset: int = added(default=0)

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ValueError(f"offset must be at least 0, got {self.offset}.")

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        index = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)
        if isinstance(schedule, TableSchedule):
            stride = schedule.num_timesteps // num_steps
            limit = schedule.num_timesteps - 1 - (num_steps - 1) * stride
            if self.offset > limit:
                raise ValueError(f"offset must be at most {limit} for num_steps={num_steps}, got {self.offset}.")
            return tuple(((index * stride + 1 + self.offset) / schedule.num_timesteps).tolist())
        if self.offset:
            raise ValueError(f"offset must be 0 for a continuous schedule, got {self.offset}.")
        return tuple((schedule.t_min + (schedule.t_max - schedule.t_min) * index / num_steps).tolist())


@dataclass(frozen=True)
class QuadraticTimes(TimeGrid):
    """Step indices with evenly spaced square roots, denser near the data (Song et al. 2021, appendix D.2 and code).

    reach: the largest index as a fraction of T, in (0, 1]; 0.8 in the paper's code.

    >>> from diffusion_lab import LinearSchedule, QuadraticTimes
    >>> QuadraticTimes()(LinearSchedule(), num_steps=4)
    (0.801, 0.356, 0.089, 0.001)
    """

    reach: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.reach <= 1:
            raise ValueError(f"reach must be in (0, 1], got {self.reach}.")

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        if isinstance(schedule, TableSchedule):
            steps = schedule.num_timesteps
            index = (torch.linspace(0, (self.reach * steps) ** 0.5, num_steps, dtype=torch.float64) ** 2).floor()
            return _distinct_steps((index.clamp(max=steps - 1) + 1) / steps, schedule)
        fraction = torch.linspace(1, 0, num_steps, dtype=torch.float64) ** 2
        return tuple((schedule.t_min + (self.reach * schedule.t_max - schedule.t_min) * fraction).tolist())


@dataclass(frozen=True)
class KarrasTimes(TimeGrid):
    """Noise levels sigma / alpha whose rho-th roots are evenly spaced (Karras et al. 2022, eq. 5).

    sigma_min, sigma_max: smallest and largest noise level; None selects the level at t_min and at the last time with
        signal, respectively.
    rho: larger values give more times at low noise levels.  Raises ValueError unless rho is above 0.

    >>> from diffusion_lab import EDMSchedule, KarrasTimes
    >>> [round(t, 3) for t in KarrasTimes()(EDMSchedule(), num_steps=3)]
    [80.0, 2.515, 0.002]
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if self.rho <= 0:
            raise ValueError(f"rho must be above 0, got {self.rho}.")

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        low, high = (_noise_level(schedule, t) for t in (schedule.t_min, _last_time_with_signal(schedule)))
        low = low if self.sigma_min is None else self.sigma_min
        high = high if self.sigma_max is None else self.sigma_max
        if not 0 < low < high:
            raise ValueError(f"sigma_min must be above 0 and below sigma_max={high:g}, got {low:g}.")
        ends = high ** (1 / self.rho), low ** (1 / self.rho)
        return _times_at_log_snr(
            schedule, num_steps, lambda n: -2 * self.rho * torch.linspace(*ends, n, dtype=torch.float64).log()
        )


@dataclass(frozen=True)
class LogSNRTimes(TimeGrid):
    """Times that are evenly spaced in log-SNR (Lu et al. 2022, section 4).

    >>> from diffusion_lab import LinearSchedule, LogSNRTimes
    >>> LogSNRTimes()(LinearSchedule(), num_steps=4)
    (1.0, 0.604, 0.074, 0.001)
    """

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        num_steps = resolve_num_steps(schedule, num_steps)
        ends = torch.tensor([_last_time_with_signal(schedule), schedule.t_min], dtype=torch.float64)
        first, last = schedule.log_snr(ends).tolist()
        if math.isinf(last):  # the first step of the schedule adds no noise: end at the second step
            last = float(schedule.log_snr(schedule.following(ends[1])))
        return _times_at_log_snr(schedule, num_steps, lambda n: torch.linspace(first, last, n, dtype=torch.float64))


@dataclass(frozen=True)
class SectionTimes(TimeGrid):
    """Sections of equal size, each with its own number of evenly spaced times (Nichol & Dhariwal 2021, code).

    counts: number of times in each section, from data to noise: [10, 10, 10, 10, 10] for the code's "10,10,10,10,10".
    If num_steps differs from the sum of counts, num_steps is divided in proportion to counts.
    Calls raise ValueError for a continuous schedule, and if a section has fewer steps than its count.

    >>> from diffusion_lab import LinearSchedule, SectionTimes
    >>> SectionTimes([3, 1])(LinearSchedule(), num_steps=4)
    (0.501, 0.5, 0.251, 0.001)
    """

    counts: Sequence[int]

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        schedule = require_steps(schedule, "SectionTimes (time_grid=sections)")
        if not self.counts or min(self.counts) < 1:
            size = schedule.num_timesteps // max(len(self.counts), 1)
            got = min(self.counts, default="none")
            raise ValueError(f"counts must be in 1..{size} (the number of steps of a section), got {got}.")
        total = sum(self.counts)
        num_steps = total if num_steps is None else resolve_num_steps(schedule, num_steps)
        if any(num_steps * count % total for count in self.counts):
            raise ValueError(
                f"num_steps must be {total} (the sum of counts) or a number that can be divided in proportion to "
                f"counts, got {num_steps}."
            )
        index: list[int] = []
        first = 0
        for section, count in enumerate(count * num_steps // total for count in self.counts):
            size = schedule.num_timesteps // len(self.counts) + (section < schedule.num_timesteps % len(self.counts))
            if not 1 <= count <= size:
                raise ValueError(
                    f"counts, in proportion to num_steps={num_steps}, must be in 1..{size} (the number of steps of a "
                    f"section), got {count}."
                )
            stride = (size - 1) / max(count - 1, 1)
            index += [first + round(stride * k) for k in range(count)]
            first += size
        return tuple((k + 1) / schedule.num_timesteps for k in reversed(index))


@dataclass(frozen=True)
class ListedTimes(TimeGrid):
    """The given times, in decreasing order.

    times: strictly decreasing times above 0.  Calls raise ValueError if num_steps is not their number.

    >>> from diffusion_lab import DDIM, CosineSchedule, GaussianProcess, ListedTimes
    >>> DDIM(GaussianProcess(CosineSchedule()), num_steps=3, time_grid=ListedTimes([1.0, 0.5, 0.1])).times
    (1.0, 0.5, 0.1)
    """

    times: Sequence[float]

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        if num_steps not in (None, len(self.times)):
            raise ValueError(f"num_steps must be {len(self.times)} (the number of listed times), got {num_steps}.")
        return tuple(self.times)


def require_steps(schedule: NoiseSchedule, grid: str) -> TableSchedule:
    """Return a discrete schedule.  Raises ValueError for a continuous schedule.  grid: time grid that requires it."""
    if not isinstance(schedule, TableSchedule):
        raise ValueError(
            f"`schedule` must have discrete steps (linear, cosine, ...) for the time grid {grid}, got the continuous "
            f"{type(schedule).__name__}."
        )
    return schedule


def resolve_num_steps(schedule: NoiseSchedule, num_steps: int | None) -> int:
    """Return num_steps, or the number of steps of a discrete schedule if num_steps is None.

    Raises the errors of `TimeGrid.__call__`.
    """
    available = schedule.num_timesteps if isinstance(schedule, TableSchedule) else None
    num_steps = available if num_steps is None else num_steps
    if num_steps is None:
        raise ValueError(f"num_steps must be given for the continuous {type(schedule).__name__}, got None.")
    given: Any = num_steps
    if isinstance(given, bool) or not isinstance(given, Integral) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number of at least 1, got {num_steps}.")
    if available is not None and num_steps > available:
        raise ValueError(f"num_steps must be at most the schedule's {available} steps, got {num_steps}.")
    return num_steps


def _last_time_with_signal(schedule: NoiseSchedule) -> float:
    """Return t_max, or a time just before it if no signal is left at t_max, so that the log-SNR is finite."""
    if schedule.remaining_signal > 0:
        return schedule.t_max
    if isinstance(schedule, TableSchedule):
        return float(schedule.previous(torch.tensor(schedule.t_max, dtype=torch.float64)))
    return schedule.t_max - schedule.t_min


def _noise_level(schedule: NoiseSchedule, t: float) -> float:
    """Return sigma_t / alpha_t."""
    return float((-schedule.log_snr(torch.tensor(t, dtype=torch.float64)) / 2).exp())


def _times_at_log_snr(schedule: NoiseSchedule, num_steps: int, log_snr: Callable[[int], Tensor]) -> tuple[float, ...]:
    """Return num_steps decreasing times with the log-SNRs that the function `log_snr` returns.

    log_snr: function of a number of times n that returns n increasing log-SNRs, [n].
    If t_max has no signal, its log-SNR is not finite. In this case t_max is the first time, and `log_snr` returns the
    log-SNRs of the other num_steps - 1 times.
    """
    no_signal = schedule.remaining_signal == 0
    times = schedule.at_log_snr(log_snr(num_steps - no_signal))
    if no_signal:
        times = torch.cat([torch.tensor([schedule.t_max], dtype=torch.float64), times])
    return _distinct_steps(times.flip(0), schedule) if isinstance(schedule, TableSchedule) else tuple(times.tolist())


def _distinct_steps(times: Tensor, schedule: TableSchedule) -> tuple[float, ...]:
    """Return increasing times of a discrete schedule in decreasing order, with duplicates moved to unused steps."""
    steps = (times * schedule.num_timesteps).round().long().tolist()
    for i in range(1, len(steps)):
        steps[i] = max(steps[i], steps[i - 1] + 1)
    excess = steps[-1] - schedule.num_timesteps if steps else 0
    if excess > 0:  # the first pass exceeded the last step: shift steps back
        steps[-1] = schedule.num_timesteps
        for i in reversed(range(len(steps) - 1)):
            steps[i] = min(steps[i], steps[i + 1] - 1)
    return tuple(step / schedule.num_timesteps for step in reversed(steps))
