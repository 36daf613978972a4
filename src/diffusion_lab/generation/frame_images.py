"""Frames of a sequence: images that a network generates along a path."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.data.classes import RANDOM
from diffusion_lab.edits import FrameSequence, Invert, Place, slerp
from diffusion_lab.edits.variation import SameNoise, StartingFrom
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import describe
from diffusion_lab.generation.batched_images import BatchedImages
from diffusion_lab.generation.cascade import CascadeImages
from diffusion_lab.generation.edit_sources import EditSources
from diffusion_lab.generation.edited_images import EditedImages, require_null_label
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import ImageNoise, Purpose
from diffusion_lab.samplers import OnStep, obstacle_to_inversion


class FrameImages(BatchedImages):
    """The frames of a sequence, indexed from 0.

    A stop of the path has the noise and the class of a sample of the network, or of a source image. Samplers that add
    noise in their steps add the same noise to all frames, so that frames change continuously with every sampler.
    The noise of each network of a cascade moves along the same path, and its classes are those of the first network.
    """

    def __init__(
        self, seeded: SeededImages, sequence: FrameSequence, *, sources: EditSources | None = None, seed: int = 0
    ) -> None:
        """Raise UserError or ValueError if the sequence does not fit the network, the sampler or the sources.

        seeded: images that the network generates without a path, with the sampler, label, guidance and batch size; in
            a cascade, they are conditioned on the frames of the previous network.
        sources: source images, which are the stops; None for samples as stops.  seed: seed of the sequence.
        """
        source = seeded.condition_images
        previous = source.images if isinstance(source, CascadeImages) else source
        if not isinstance(previous, FrameImages | None):
            raise ValueError("`seeded` must be images of a network that is not conditioned on other images.")
        super().__init__(
            seeded.module,
            seeded.sampler,
            seeded.guidance,
            weights=seeded.weights,
            condition_images=source,
            batch_size=seeded.batch_size,
            folder=seeded.folder,
        )
        self.seeded, self.sequence, self.sources, self.seed = seeded, sequence, sources, seed
        self.inverted = None if sources is None or previous is not None else self._inverted(sources)
        self.num_stops: int = self._num_stops() if previous is None else previous.num_stops
        if previous is None:
            self._require_stops()
        self.stop_labels: list[int] | None = self._stop_labels() if previous is None else previous.stop_labels
        """Label of each stop; None for a network without classes."""
        self._require_labels()
        self._require_scales()
        self._noises: dict[int, Tensor] = {}

    @property
    def num_images(self) -> int:
        """Number of frames."""
        return self.sequence.num_frames

    @property
    def num_classes(self) -> int:
        return 0 if self.stop_labels is None else self.seeded.num_classes

    @property
    def num_steps(self) -> int:
        return self.seeded.num_steps

    @property
    def num_evaluations(self) -> int:
        return self.seeded.num_evaluations

    def place(self, frame: int) -> Place:
        """Return the place of a frame on the path."""
        return self.sequence.place(frame, self.num_stops)

    def noise(self, frame: int) -> Tensor:
        """Return the initial noise of a frame, [C, H, W], on the CPU."""
        return self._between_stops(frame, self._stop_noise)

    def condition_noise(self, indices: Sequence[int], shape: Sequence[int], stage: int) -> Tensor:
        def at_stop(stop: int) -> Tensor:
            noise = ImageNoise([self._seed_of(stop)], shape, stage=stage, purpose=Purpose.SAMPLED_CONDITION)
            return noise.draw()[0]

        return torch.stack([self._between_stops(frame, at_stop) for frame in indices]).to(self.device)

    def classes(self, frame: int) -> dict[int, float]:
        """Return the label of each class of a frame with its weight; empty without classes."""
        if self.stop_labels is None:
            return {}
        place = self.place(frame)
        first, second = (self.stop_labels[stop] for stop in (place.first, place.second))
        if first == second or not place.fraction:
            return {first: 1.0}
        return {first: 1 - place.fraction, second: place.fraction}

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Return the class with the largest weight of each frame, int64 [B], or None without classes."""
        if self.stop_labels is None:
            return None
        weights = [self.classes(min(k, self.num_images - 1)) for k in indices]
        return torch.tensor([max(each, key=lambda label: each[label]) for each in weights])

    def condition(self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]) -> Condition:
        """Return the condition of the network for images, see `SeededImages.condition`."""
        return self.seeded.condition(x_0, label, paired, indices)

    def protocol(self) -> dict[str, Any]:
        sources = self.sources
        return self.seeded.protocol() | {
            "label": self._label_protocol(),
            "task": describe(self.sequence, omit=() if sources is None else ("seeds",)),
            "seed": self.seed,
            "batch_size": self.micro_batch_size,
            **({} if sources is None else {"sources": sources.protocol()}),
            **({"guidance_scale": "of each frame"} if self._scale(0) is not None else {}),
        }

    def _label_protocol(self) -> Any:
        null = self.module.labels.num_classes or None  # an unconditional network, guided by a classifier, has none
        if not self.stop_labels or set(self.stop_labels) == {null}:
            return None
        return describe(self.stop_labels if self._mixes_classes else self.stop_labels[0])

    def _draw(self, indices: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        frames = range(indices.start, min(indices.stop, self.num_images))  # others only fill the last batch
        parts = []
        for scale, group in groupby(frames, self._scale):
            part = list(group)
            rows = torch.tensor(part) - indices.start
            parts.append(self._frames(part, condition.select(rows), scale, on_step))
        empty = torch.zeros(len(indices) - len(frames), *self.shape, dtype=torch.uint8)
        return torch.cat([*parts, empty])

    def _frames(self, frames: list[int], condition: Condition, scale: float | None, on_step: OnStep | None) -> Tensor:
        """Return frames with the same guidance scale, uint8 [B, C, H, W], on the CPU."""
        module = self.module
        denoiser = self._guidance(scale).to(self.device)(module.denoiser(self.weights), module.labels)
        noise = torch.stack([self.noise(frame) for frame in frames]).to(self.device)
        start = StartingFrom(noise, SameNoise(self._seed_of(0), noise, self.stage))
        x_0 = self.sampler.sample(denoiser, start, condition, on_step)
        return to_uint8(module.space.decode(x_0)).cpu()

    def _label(self, indices: range) -> Tensor | None:
        """Return the labels of frames, int64 [B], or the weights of all labels if classes are mixed, float [B, n]."""
        if self.stop_labels is None or not self.seeded.num_classes:
            return None
        if not self._mixes_classes:
            return torch.full((len(indices),), self.stop_labels[0])
        weights = torch.zeros(len(indices), max(self.module.labels.num_rows, self.seeded.num_classes))
        for row, frame in zip(weights, indices, strict=True):
            for label, weight in self.classes(min(frame, self.num_images - 1)).items():
                row[label] = weight
        return weights

    @property
    def _mixes_classes(self) -> bool:
        return len(set(self.stop_labels or ())) > 1

    def _scale(self, frame: int) -> float | None:
        """Return the guidance scale of a frame; None for the scale of all frames, and after the first network."""
        return None if self.stage else self.sequence.guidance_scale(self.place(frame))

    def _guidance(self, scale: float | None) -> Guidance:
        """Return the guidance of frames.  scale: their guidance scale; None for that of all frames."""
        if scale is None:
            return self.guidance
        guide = None if scale == 1 else self.guidance.guide  # a guide has no effect at this scale, and is refused
        return replace(self.guidance, strength=replace(self.guidance.strength, guidance_scale=scale), guide=guide)

    def _between_stops(self, frame: int, noise: Callable[[int], Tensor]) -> Tensor:
        place = self.place(frame)
        return slerp(noise(place.first), noise(place.second), place.fraction)

    def _stop_noise(self, stop: int) -> Tensor:
        if stop not in self._noises:
            if self.inverted is None:
                shape = (self.module.network.in_channels, *[self.module.network.resolution] * 2)
                noise = ImageNoise([self._seed_of(stop)], shape, stage=self.stage).draw()
            else:  # alone, so that the noise does not depend on the batches
                noise = self.inverted.noises(range(stop, stop + 1))
            self._noises[stop] = noise[0]
        return self._noises[stop]

    def _seed_of(self, stop: int) -> int:
        """Return the seed of a stop. The noise that samplers add in their steps is that of the first stop."""
        return self.seed + (self.sequence.noise_number(stop) if self.sources is None else stop)

    def _num_stops(self) -> int:
        if self.sources is not None:
            return len(self.sources)
        label, num_classes = self.seeded.label, len(self.seeded.trained) or self.seeded.num_classes
        num_given = len(label) if isinstance(label, list) else 1
        return self.sequence.num_stops(num_classes if label is None else num_given)

    def _inverted(self, sources: EditSources) -> EditedImages:
        name, sampler = self.sequence.name, self.sampler
        if not self.sequence.takes_images:
            raise UserError(f"`images` must not be given for task={name}, which starts from the noise of `seed`.")
        if len(sources) < 2:
            raise UserError(f"`images` must contain at least two source images for task={name}, got {len(sources)}.")
        if got := obstacle_to_inversion(sampler):
            raise UserError(
                f"`sampler` must be ddim with sampler.eta=0 or heun with sampler.churn.amount=0 for task={name} with "
                f"source images, whose noise is found by inversion, got {got}."
            )
        return EditedImages(self.seeded, sources, Invert(), seed=self.seed)

    def _stop_labels(self) -> list[int] | None:
        stops, null = range(self.num_stops), self.module.labels.num_classes
        if self.inverted is None:
            labels = self.seeded.labels([self.sequence.label_seed(stop, self.seed) for stop in stops])
        else:
            labels = self.inverted.labels(stops)
        if labels is None:
            return [null] * self.num_stops if null else None
        return [int(label) for label in labels]

    def _require_stops(self) -> None:
        name, label = self.sequence.name, self.seeded.label
        if name == "morph":
            if not self.seeded.num_classes:
                raise ValueError(
                    "`run` must be trained with conditioning=label, or `classifier` must be given, for task=morph, got "
                    "a network without classes."
                )
            if self.num_stops < 2 or label == RANDOM:
                raise ValueError(f"`label` must be a list of at least two classes for task=morph, got {label}.")
        if self.num_images < self.num_stops:
            remedy = "; num_images=2 selects two images" if self.inverted is not None else ""
            raise ValueError(
                f"task.num_frames must be at least {self.num_stops} (the number of classes, seeds, images or scales "
                f"on the path), got {self.num_images}{remedy}."
            )

    def _require_labels(self) -> None:
        """Raise ValueError if the network does not accept the classes of the stops, or their mixtures."""
        labels, guide = self.module.labels, self.guidance.guide
        if labels.num_classes and labels.num_classes in (self.stop_labels or ()):  # the null label
            require_null_label(self)
        if not self._mixes_classes:
            return
        networks: list[Any] = [self.module.network] if labels.num_classes else []
        networks += [] if guide is None else [guide.network]
        for network in networks:
            if not getattr(network, "mixes_labels", False):
                remedy = "" if self.sequence.name == "morph" else "; label=CLASS selects one class for all frames"
                raise ValueError(
                    "`run` must have a network that accepts mixtures of classes, such as UNet and DiT, for frames "
                    f"between different classes, got {type(network).__name__}{remedy}."
                )

    def _require_scales(self) -> None:
        if self._scale(0) is None or self.guidance.guide is not None:
            return
        if not self.module.labels.dropout:
            raise ValueError(
                f"`run` must be trained with conditioning=label and conditioning.dropout above 0, or `guide` must be "
                f"given, for task={self.sequence.name}, got a network that has no null label."
            )
