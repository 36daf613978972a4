"""Intervals of optimizer steps."""

from collections.abc import Sequence


class Every:
    """An interval of optimizer steps: an action is due at each multiple of num_steps and at each step in also_at.

    An action is due only once per step, although Lightning calls its hooks for every batch, and thus several times at
    the same optimizer step with gradient accumulation.
    """

    def __init__(self, num_steps: int, also_at: Sequence[int] = ()) -> None:
        if num_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {num_steps}.")
        self.num_steps, self.also_at = num_steps, frozenset(also_at)
        self._last = 0

    def start_at(self, step: int) -> None:
        """Start or resume a run at `step`. Actions due at this step were taken before the run was stopped."""
        self._last = step

    def due(self, step: int) -> bool:
        """Return whether to act after optimizer step number `step`, counted from 1."""
        if step == self._last or not (step % self.num_steps == 0 or step in self.also_at):
            return False
        self._last = step
        return True

    def due_at_end(self, step: int) -> bool:
        """Return whether a run that ends after `step` has not acted at this step yet."""
        return step > 0 and step != self._last
