"""What a network is told beside the noisy image and the time."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """label: int64 [B], or None for a network without classes.

    augmentation: what was done to the images before they became noisy, float [B, num_augmentation_channels]; None means
        nothing, as 0 does.
    low_resolution: the same images at a smaller side, float [B, C, h, w] in [-1, 1], for a network that enlarges them.
    """

    label: Tensor | None = None
    augmentation: Tensor | None = None
    low_resolution: Tensor | None = None

    def select(self, rows: Tensor) -> "Condition":
        """The condition of some images of the batch.  rows: int64 [b]."""
        return Condition(*(_rows(getattr(self, field.name), rows) for field in fields(self)))

    def to(self, device: torch.device) -> "Condition":
        """All parts on a device."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Condition(*(None if part is None else part.to(device) for part in parts))

    @staticmethod
    def cat(first: "Condition", second: "Condition") -> "Condition":
        """Both conditions in one batch: [2 B].  Raises ValueError where one alone has a part that it would lose."""
        names = [field.name for field in fields(first)]
        return Condition(*(_cat(name, getattr(first, name), getattr(second, name)) for name in names))


def _rows(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows.to(part.device)]


def _cat(name: str, first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ValueError(f"{name} must be given in both conditions or in none, got it in one.")
    return torch.cat([first, second])


@dataclass(frozen=True)
class Labels:
    """The classes that a network knows.

    num_classes: 0 for an unconditional network.
    dropout: share of the labels replaced by the null label in training, so that guidance can ask for "no class"
        (Ho & Salimans 2022, algorithm 1). The null label exists only where labels are dropped.
    """

    num_classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.dropout and not self.num_classes:
            raise ValueError(f"dropout must be 0 where num_classes is 0, got {self.dropout}.")

    @property
    def null(self) -> int:
        """The label that means "no class".  Raises ValueError for a network that has none."""
        if not self.dropout:
            raise ValueError(
                "guidance needs a network that was trained with dropped labels "
                "(conditioning=label, conditioning.dropout above 0); this one has no null label."
            )
        return self.num_classes

    @property
    def num_rows(self) -> int:
        """Rows of an embedding table for these labels."""
        return self.num_classes + (self.dropout > 0)

    def drop(self, label: Tensor | None, dropped: Tensor) -> Tensor | None:
        """Labels [B] with the null label where `dropped` [B] is true; None for an unconditional network."""
        if not self.num_classes or label is None:
            return None
        if not self.dropout:
            return label
        return label.masked_fill(dropped.to(label.device, non_blocking=label.is_cuda), self.null)
