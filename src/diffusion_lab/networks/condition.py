"""Inputs that a network is conditioned on, in addition to the noisy image and the time."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Condition of a batch of images. Each part is None for a network that does not take this part.

    label: class, int64 [B], or the weights of all labels in a mixture of classes, float [B, num_rows of `Labels`], for
        a network with `mixes_labels`.
    augmentation: values that describe the augmentation of the images, float [B, n]; None and 0 mean no augmentation.
    image: condition images, float [B, C, h, w]: low-resolution images for a super-resolution network (see
        `LowResolution`), images with holes and their masks for an inpainting network (see `Masking`), or paired images.
        A network for latents receives the latents of the latter two, see `Latents.encode_condition`.
    low_resolution_noise: standard deviation of the noise in low-resolution images, float [B].

    >>> from diffusion_lab import Condition
    >>> Condition(label=torch.tensor([3, 7, 9])).select(torch.tensor([0, 2])).label
    tensor([3, 9])
    """

    label: Tensor | None = None
    augmentation: Tensor | None = None
    image: Tensor | None = None
    low_resolution_noise: Tensor | None = None

    def select(self, rows: Tensor) -> "Condition":
        """Return the condition of a part of the batch.  rows: indices of the images, int64 [b]."""
        return Condition(*(_rows(getattr(self, field.name), rows) for field in fields(self)))

    def with_label(self, label: int) -> "Condition":
        """Return the condition with one label for all images, which have labels, in the form of their labels."""
        assert self.label is not None
        if self.label.dim() == 1:
            return replace(self, label=torch.full_like(self.label, label))
        weights = torch.zeros_like(self.label)
        weights[:, label] = 1
        return replace(self, label=weights)

    def to(self, device: torch.device) -> "Condition":
        """Return the condition with all parts on a device."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Condition(*(None if part is None else part.to(device) for part in parts))

    @staticmethod
    def of(condition: "Condition | Tensor | None") -> "Condition":
        """Return a condition; a tensor stands for labels, and None for no condition.  Raises ValueError otherwise."""
        given: Any = condition
        if given is None or torch.is_tensor(given):
            return Condition(given)
        if not isinstance(given, Condition):
            raise ValueError(f"`condition` must be a Condition, labels (int64 [B]) or None, got {given!r}.")
        return given

    @staticmethod
    def cat(first: "Condition", second: "Condition") -> "Condition":
        """Concatenate two conditions: [2 B].  Raises ValueError if a part is given in only one of them."""
        names = [field.name for field in fields(first)]
        return Condition(*(_cat(name, getattr(first, name), getattr(second, name)) for name in names))


def _rows(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows.to(part.device)]


def _cat(name: str, first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ValueError(f"{name} must be given in both conditions or in neither, got it in only one.")
    return torch.cat([first, second])


@dataclass(frozen=True)
class Labels:
    """Classes that a network is conditioned on.

    num_classes: number of classes; 0 for an unconditional network.
    dropout: fraction of labels that training replaces by the null label, which means "no class" (Ho & Salimans 2022,
        algorithm 1). Classifier-free guidance requires a fraction above 0: a network that is trained without dropout
        has no null label.
    Raises ValueError if dropout is outside [0, 1), or if it is above 0 without classes.

    >>> from diffusion_lab import Labels
    >>> Labels(10, dropout=0.1).drop(torch.tensor([3, 7]), dropped=torch.tensor([True, False]))
    tensor([10,  7])
    """

    num_classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.dropout and not self.num_classes:
            raise ValueError(f"dropout must be 0 if num_classes is 0, got {self.dropout}.")

    @property
    def null(self) -> int:
        """The null label.  Raises ValueError for a network that was trained without label dropout."""
        if not self.dropout:
            raise ValueError(
                "classifier-free guidance requires a network that was trained with dropped labels, such as "
                "labels=Labels(10, dropout=0.1) (conditioning=label with conditioning.dropout above 0), got a network "
                "that has no null label; a guidance scale of 1 generates samples without guidance."
            )
        return self.num_classes

    @staticmethod
    def of(labels: "Labels | None") -> "Labels":
        """Return `labels`, or the labels of an unconditional network for None.  Raises ValueError for other values."""
        given: Any = Labels() if labels is None else labels
        if not isinstance(given, Labels):
            raise ValueError(f"`labels` must be Labels, such as Labels(10, dropout=0.1), or None, got {given!r}.")
        return given

    @property
    def num_rows(self) -> int:
        """Number of rows of an embedding table for these labels."""
        return self.num_classes + (self.dropout > 0)

    def drop(self, label: Tensor | None, dropped: Tensor) -> Tensor | None:
        """Return labels [B] with the null label where `dropped` [B] is true; None for an unconditional network."""
        if not self.num_classes or label is None:
            return None
        if not self.dropout:
            return label
        return label.masked_fill(dropped.to(label.device, non_blocking=label.is_cuda), self.null)
