"""Metric values with their fingerprints."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """A metric value. The fingerprint contains all settings that must be equal for two values to be comparable.

    meaning: what the value is, in a few words.
    higher_is_better: whether a higher value is better; None for a value without a direction, a standard deviation.
    """

    name: str
    value: float
    fingerprint: dict[str, Any]
    meaning: str = ""
    higher_is_better: bool | None = False

    @property
    def description(self) -> str:
        """What the value is, and its direction: "Fréchet distance of the features; lower is better"."""
        direction = {True: "higher is better", False: "lower is better", None: ""}[self.higher_is_better]
        return "; ".join(filter(None, [self.meaning, direction]))

    @property
    def objective(self) -> float:
        """The value that a search minimizes."""
        return -self.value if self.higher_is_better else self.value
