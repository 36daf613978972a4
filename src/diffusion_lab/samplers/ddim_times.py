"""The time grid "ddimN" of Nichol & Dhariwal (2021)."""

from dataclasses import dataclass

from diffusion_lab.process import NoiseSchedule
from diffusion_lab.samplers.time_grids import TimeGrid, require_steps, resolve_num_steps


@dataclass(frozen=True)
class DDIMTimes(TimeGrid):
    """Every k-th step from the first step up, with the smallest k that gives num_steps steps ("ddimN").

    This is the option for DDIM in the code of Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021). The grid equals
    `LeadingTimes` if num_steps divides the number of steps T.
    Calls raise ValueError for a continuous schedule, and if no k gives num_steps steps.

    >>> from diffusion_lab import DDIMTimes, LinearSchedule
    >>> DDIMTimes()(LinearSchedule(), num_steps=3)  # the indices 668, 334 and 0
    (0.669, 0.335, 0.001)
    """

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        total = require_steps(schedule, "DDIMTimes (time_grid=ddim)").num_timesteps
        num_steps = resolve_num_steps(schedule, num_steps)
        # The stride is at most T - 1, as in the papers' code: one step, at index 0, would not start from noise.
        stride = min(_ceil(total, num_steps), max(total - 1, 1))
        if _ceil(total, stride) != num_steps:
            near = " or ".join(map(str, sorted({_ceil(total, stride), _ceil(total, max(stride - 1, 1))})))
            raise ValueError(
                "num_steps must be a number of steps that a whole stride through all steps gives, such as "
                f"{near} of {total}, for the time grid DDIMTimes (time_grid=ddim), got {num_steps}."
            )
        return tuple((index + 1) / total for index in reversed(range(0, total, stride)))


def _ceil(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up, which is the length of range(0, dividend, divisor)."""
    return -(-dividend // divisor)
