"""Results of an edit: images that a network generates from source images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.edits import Generator, Invert, Sources, Task
from diffusion_lab.generation.batched_images import BatchedImages
from diffusion_lab.generation.cascade import CascadeImages
from diffusion_lab.generation.condition_images import MaskedImages, ShuffledImages
from diffusion_lab.generation.edit_sources import EditSources
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.latents import Pixels
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import OnStep

CHECKED_AT_ONCE = 256
"""Number of sources whose masks are checked in one batch."""


class EditedImages(BatchedImages):
    """The results of an edit. Source k has the results k * num_results to (k + 1) * num_results - 1.

    A result is a function of the network, the sampler, the task, its source image and its seed, which is `seed` plus
    its index. Random masks and the noise of measurements depend on the number of the source only. In a cascade, it is
    also a function of the result of the previous network, with the same index.
    """

    def __init__(
        self, seeded: SeededImages, sources: EditSources, task: Task, *, num_results: int = 1, seed: int = 0
    ) -> None:
        """Raise UserError or ValueError if the task does not fit the network, the sampler or a source image.

        seeded: images that the network generates without sources, with the sampler, label, guidance and batch size; in
            a cascade, they are conditioned on the results of the previous network.
        """
        if num_results < 1:
            raise ValueError(f"num_results must be a whole number of at least 1, got {num_results}.")
        source = seeded.condition_images
        if not isinstance(source, CascadeImages | MaskedImages | None):
            raise ValueError("`seeded` must be images of a network that is not conditioned on images of a data set.")
        super().__init__(
            seeded.module,
            seeded.sampler,
            seeded.guidance,
            weights=seeded.weights,
            condition_images=source if isinstance(source, CascadeImages) else None,  # an edit has its own holes
            batch_size=seeded.batch_size,
            folder=seeded.folder,
        )
        self.seeded, self.sources, self.task = seeded, sources, task
        self.num_results, self.seed = num_results, seed
        self._require_label()
        self._require_sources()

    @property
    def num_images(self) -> int:
        """Number of results of all sources."""
        return len(self.sources) * self.num_results

    @property
    def num_classes(self) -> int:
        return self.seeded.num_classes if self._has_labels else 0

    @property
    def num_steps(self) -> int:
        return self.task.num_steps(self.sampler)

    @property
    def num_evaluations(self) -> int:
        return self.task.num_evaluations(self.sampler)

    @property
    def num_passes(self) -> int:
        return self.task.num_passes(self.sampler)

    def source_of(self, index: int) -> int:
        """Return the number of the source of a result; the last one for indices that fill the last batch."""
        return min(index // self.num_results, len(self.sources) - 1)

    def results(self, source: int) -> Tensor:
        """Return all results of a source, uint8 [num_results, C, H, W]."""
        indices = range(source * self.num_results, (source + 1) * self.num_results)
        return torch.cat([self.generate(batch) for batch in self.batches(indices)])

    def seeds(self, indices: Sequence[int]) -> list[int]:
        return [self.seed + index for index in indices]

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        if not self.seeded.num_classes:
            return None
        if self.condition_images is not None:
            return self.condition_images.labels(indices)
        if self.seeded.label is not None:
            return self.seeded.labels(indices)
        return self.sources.labels([self.source_of(index) for index in indices])

    def condition(self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]) -> Condition:
        """Return the condition of the network for images, see `SeededImages.condition`."""
        return self.seeded.condition(x_0, label, paired, indices)

    def noises(self, indices: range) -> Tensor:
        """Return the noise to which task=invert encodes the sources of some results, [B, C, H, W], on the CPU.

        indices: indices of the results in one full batch.
        """
        assert isinstance(self.task, Invert)
        full_batch = self._full_batch(indices)
        generator = self._generator(full_batch, self._condition(full_batch), None)
        noise = self.task.noise(self._sources(full_batch), generator).cpu()
        return noise[indices.start - full_batch.start : indices.stop - full_batch.start]

    def protocol(self) -> dict[str, Any]:
        protocol = self.seeded.protocol()
        protocol.pop(MaskedImages.field, None)  # random holes, which an edit does not use
        return protocol | {
            "label": self._label_protocol() if self._has_labels else None,
            "task": self.task.protocol(),
            "sources": self.sources.protocol(),
            "num_results": self.num_results,
            "seed": self.seed,
            "batch_size": self.micro_batch_size,
        }

    def _label_protocol(self) -> Any:
        if isinstance(self.condition_images, CascadeImages):
            return self.condition_images.images.protocol()["label"]
        return "class of the source" if self.seeded.label is None else self.seeded.label

    def _draw(self, indices: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        return to_uint8(self.task.edit(self._sources(indices), self._generator(indices, condition, on_step))).cpu()

    def _sources(self, indices: range) -> Sources:
        return self.sources.batch([self.source_of(index) for index in indices], self.device)

    def _generator(self, indices: range, condition: Condition, on_step: OnStep | None) -> Generator:
        module, space = self.module, self.module.space
        shape = (module.network.in_channels, module.network.resolution, module.network.resolution)
        is_latent = space != Pixels()
        return Generator(
            self.sampler,
            self.guidance.to(self.device)(module.denoiser(self.weights), module.labels),
            condition,
            ImageNoise(self.seeds(indices), shape, self.device, stage=self.stage),
            space.encode if is_latent else None,
            space.decode if is_latent else None,
            on_step,
        )

    @property
    def _has_labels(self) -> bool:
        """Whether the network receives a class for each result."""
        return self.labels([0]) is not None

    def _label(self, indices: range) -> Tensor | None:
        """Return the label of each result: its class, or the null label of a network with classes; None without."""
        labels = self.module.labels
        if self._has_labels or not labels.num_classes:
            return self.labels(indices)
        return torch.full((len(indices),), labels.null)

    def _require_label(self) -> None:
        if self.task.needs_label and not self.seeded.num_classes:
            raise ValueError(
                f"`run` must be trained with conditioning=label, or `classifier` must be given, for task="
                f"{self.task.name}, which guides the results to a class; got a network without classes."
            )
        if self.task.needs_label and self.seeded.label is None:
            raise ValueError(f"`label` must be given for task={self.task.name}, such as label=3, got none.")
        if self.seeded.num_classes and not self._has_labels:
            require_null_label(self)
        elif self.condition_images is None and self.seeded.label is None:  # the classes are those of the sources
            ShuffledImages(self.sources.images, self.sources.name).require(self.seeded.num_classes)

    def _require_sources(self) -> None:
        """Raise UserError if the task cannot edit a source image, before anything is generated."""
        space, mask = self.module.space, getattr(self.task, "mask", None)
        decode = None if space == Pixels() else space.decode
        differ = getattr(mask, "of_each_source", False) or (mask is not None and self.sources.resolution is not None)
        size = len(self.sources) if differ else 1
        for start in range(0, size, CHECKED_AT_ONCE):
            numbers = range(start, min(start + CHECKED_AT_ONCE, size))
            sources = self.sources.batch(numbers, self.device)
            self.task.require(self.sampler, sources, decode)


def require_null_label(images: BatchedImages) -> None:
    """Raise ValueError unless the network of images with unknown classes generates images without a class."""
    guidance = images.guidance
    if guidance.classifier is not None:
        raise ValueError("`label` must be given to guide results with a classifier, got none.")
    if not images.module.labels.dropout:
        raise ValueError(
            "`label` must be given for source images without a known class, because the network was trained without "
            "dropped labels, got none."
        )
    if guidance.guide is None and guidance.strength.guidance_scale != 1:
        raise ValueError(
            "`label` must be given for source images without a known class if guidance_scale is not 1, got none with "
            f"guidance_scale={guidance.strength.guidance_scale}."
        )
