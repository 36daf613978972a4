"""Condition for actions that callbacks take every n optimizer steps."""

from collections.abc import Sequence


class Every:
    """Schedule of an action: the action is due at each multiple of num_steps and at each step in also_at.

    An action is due only once per step, although Lightning calls its hooks for every batch, and thus several times at
    the same optimizer step with gradient accumulation.
    """

    def __init__(self, num_steps: int, also_at: Sequence[int] = ()) -> None:
        if num_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {num_steps}.")
        self.num_steps, self.also_at = num_steps, frozenset(also_at)
        self._last = 0

    def start_at(self, step: int) -> None:
        """Set the step at which a run starts or resumes. An action that was due at this step has already been taken."""
        self._last = step

    def includes(self, step: int) -> bool:
        """Return whether the action belongs to optimizer step number `step`, counted from 1."""
        return step > 0 and (step % self.num_steps == 0 or step in self.also_at)

    def due(self, step: int) -> bool:
        """Return whether the action is due after optimizer step number `step`, counted from 1."""
        if step == self._last or not self.includes(step):
            return False
        self._last = step
        return True

    def count(self, first_step: int, last_step: int) -> int:
        """Return how often the action is taken after `first_step` until the end of a run of `last_step` steps."""
        multiples = last_step // self.num_steps - first_step // self.num_steps
        others = sum(first_step < step <= last_step and step % self.num_steps != 0 for step in self.also_at)
        at_end = last_step > first_step and last_step % self.num_steps != 0 and last_step not in self.also_at
        return max(0, multiples) + others + at_end

    def due_at_end(self, step: int) -> bool:
        """Return whether to take the action at the end of a run of `step` steps: it was not taken after this step."""
        return step > 0 and step != self._last
