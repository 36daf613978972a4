"""Counting optimiser steps."""

from collections.abc import Sequence


class Every:
    """True once at each multiple of num_steps, and once at each step of also_at.

    Lightning's hooks run for every batch: with accumulation, several of them end at the same optimiser step.
    """

    def __init__(self, num_steps: int, also_at: Sequence[int] = ()) -> None:
        if num_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {num_steps}.")
        self.num_steps, self.also_at = num_steps, frozenset(also_at)
        self._last = 0

    def start_at(self, step: int) -> None:
        """Tells that a run begins after `step`: what was due there was done before it stopped."""
        self._last = step

    def due(self, step: int) -> bool:
        """Whether to act after optimiser step number `step`, counted from 1."""
        if step == self._last or not (step % self.num_steps == 0 or step in self.also_at):
            return False
        self._last = step
        return True

    def left_over(self, step: int) -> bool:
        """Whether a run that ends after `step` has not acted there yet."""
        return step > 0 and step != self._last
