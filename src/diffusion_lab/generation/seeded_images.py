"""Generation of uint8 images from seeds. The images do not depend on the number of ranks or on interruptions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab.data.classes import LabelChoice, as_label, labels_of
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.fingerprints import describe
from diffusion_lab.generation.batched_images import BatchedImages, weights_sha256
from diffusion_lab.generation.condition_images import ConditionImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule


class SeededImages(BatchedImages):
    """The images that a network generates, indexed by their seeds.

    An image is a function of the network, the sampler and the seed.
    """

    def __init__(
        self,
        module: DiffusionModule,
        *,
        sampler: Sampler | None = None,
        label: LabelChoice | None = None,
        guidance: Guidance | None = None,
        weights: str | None = None,
        batch_size: int = 100,
        folder: Path | None = None,
        condition_images: ConditionImages | None = None,
    ) -> None:
        """Raise ValueError if an argument does not fit the network, or if batch_size is below 1.

        sampler: sampler that generates the images; None selects the sampler of the module.
        label: see `LabelChoice`. If the label is None, each image has the class of its condition image; if there are
            no condition images, or if they have no classes, the images have the trained classes in turn: the class of
            seed k is k modulo the number of classes if the network was trained on all of them.
        weights: name of the weights, see `DiffusionModule.sampled_network`.  batch_size: number of images per batch.
        folder: folder in which finished batches are cached, so that an interrupted job can be resumed.
        condition_images: source of the condition images, such as low-resolution images for a super-resolution network.
        """
        super().__init__(
            module,
            sampler or module.sampler,
            guidance or Guidance(),
            weights=weights,
            condition_images=condition_images,
            batch_size=batch_size,
            folder=folder,
        )
        self.guidance(module.denoiser(weights), module.labels)
        _require_condition_images(module, condition_images)
        self.trained = self.guidance.trained_classes(module.labels, module.trained_classes)
        """The classes that the network was trained on; empty if it was trained on all of them."""
        self.label = as_label(label, self.num_classes, module.class_names, default="null", trained=self.trained)

    @property
    def num_classes(self) -> int:
        return self.guidance.num_classes(self.module.labels)

    @property
    def num_steps(self) -> int:
        return len(self.sampler.times)

    @property
    def num_evaluations(self) -> int:
        return self.sampler.num_evaluations

    def protocol(self) -> dict[str, Any]:
        """Return the settings with which the images are generated, for fingerprints."""
        classes = self.num_classes
        unused = self.sampler.without_effect(classifier=self.guidance.classifier is not None)
        label = self.label
        if label is None:
            label = list(self.trained) or f"seed modulo {classes}"
        return {
            "sampler": describe(self.sampler, omit=("process", *unused)) | {"num_steps": len(self.sampler.times)},
            "schedule": describe(self.module.process.schedule),
            "weights": self.module.weights_protocol(self.weights),
            **({"conventions": added} if (added := self.module.conventions(unused)) else {}),
            **self._guidance_protocol(),
            "label": label if classes else None,
            "batch_size": self.micro_batch_size,
            "quantization": "rounded to 256 levels",
            **({} if (source := self.condition_images) is None else {source.field: source.protocol()}),
            **({} if self.module.space == Pixels() else {"space": self._space_protocol()}),
        }

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Return the class of each seed, int64 [B], or None for a network without classes."""
        classes, source = self.num_classes, self.condition_images
        labels = source.labels(seeds) if classes and self.label is None and source is not None else None
        return labels if labels is not None or not classes else labels_of(seeds, self.label, classes, self.trained)

    def condition(self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]) -> Condition:
        """Return the condition for images that were not generated, see `ConditionImages.condition_of`.

        x_0, paired: as the network receives them: pixels, or latents of these pixels.
        """
        source = self.condition_images
        return Condition(label) if source is None else source.condition_of(x_0, label, paired, indices)

    def _space_protocol(self) -> dict[str, Any]:
        space = self.module.space
        assert isinstance(space, Latents)
        return {"scale": space.scale, "shift": space.shift, "weights_sha256": weights_sha256(space.autoencoder)}

    def _guidance_protocol(self) -> dict[str, Any]:
        """Return the guidance scale, and the other guidance settings that have an effect."""
        guidance = self.guidance
        protocol = guidance.strength.protocol(self.module.network.in_channels)
        for name, model in (("guide", guidance.guide), ("classifier", guidance.classifier)):
            if model is not None:
                protocol[name] = {"weights_sha256": weights_sha256(cast(nn.Module, model.network))}
                protocol[name] |= {"conventions": own} if (own := getattr(model.network, "conventions", {})) else {}
        if guidance.classifier is not None:
            protocol["classifier_scale"] = float(guidance.classifier_scale)
        return protocol

    def _label(self, indices: range) -> Tensor | None:
        return self.labels(indices)

    def _draw(self, indices: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        images = self.module.sample(
            indices,
            condition,
            sampler=self.sampler,
            guidance=self.guidance,
            weights=self.weights,
            stage=self.stage,
            on_step=on_step,
        )
        return to_uint8(images).cpu()


def _require_condition_images(module: DiffusionModule, source: ConditionImages | None) -> None:
    channels = module.network.condition_channels
    if channels and source is None:
        raise ValueError("`condition_images` must be given for a network that is conditioned on images, got None.")
    if source is None:
        return
    given = module.space.condition_channels(source.channels)
    if channels != given:
        accepted = f"have {channels} channels" if channels else "be None"
        encoded = "" if given == source.channels else " after they are encoded"
        raise ValueError(
            f"`condition_images` (in a cascade, the images of the previous run) must {accepted} for this network, "
            f"got images with {given} channels{encoded}."
        )
    source.require(module.labels.num_classes)


def generate_with_frames(
    images: BatchedImages, batches: Sequence[range], num_frames: int, advance: Callable[[int], None]
) -> tuple[Tensor, list[Tensor]]:
    """Generate images, and frames for an animation of the sampling process.

    Collective: call on all ranks; each rank receives all images and frames.

    batches: seeds of the batches that this rank generates.
    num_frames: number of frames. Frames are recorded after evenly spaced sampler steps, which include the last step.
    advance: function that is called with 1 after each step of each batch.
    Returns the images, uint8 [N, C, H, W], and a list of frames. Each frame consists of the noisy images x_t after one
    of these steps, uint8 [N, C, H, W]. There are fewer than num_frames frames if the sampler has fewer steps.
    """
    num_steps = images.num_steps
    frame_steps = sorted({round(step) for step in np.linspace(1, num_steps, min(num_frames, num_steps))})  # can be []
    pixels, frames = [torch.zeros(0, *images.shape, dtype=torch.uint8)], list[Tensor]()

    def generate(seeds: range) -> None:
        recorded: dict[int, list[Tensor]] = {step: [] for step in frame_steps}

        def on_step(num_done: int, x_t: Tensor, x_0: Tensor) -> None:
            advance(1)
            if num_done in recorded:
                recorded[num_done].append(to_uint8(images.module.space.decode(x_t)).cpu())

        pixels.append(images.generate(seeds, on_step).cpu())
        if num_frames:
            first = seeds.start % images.batch_size
            # Only the last batch_size images are valid, because a forward pass that ran out of memory may have recorded
            # images before it failed.
            full_batch = torch.stack([torch.cat(recorded[step])[-images.batch_size :] for step in frame_steps], dim=1)
            frames.append(full_batch[first : first + len(seeds)])

    ranks = Ranks.current()
    with ranks.raise_together():
        for seeds in batches:
            generate(seeds)
    empty = torch.zeros(0, len(frame_steps), *images.shape, dtype=torch.uint8)
    gathered = ranks.all_gather(torch.cat([empty, *frames])) if num_frames else empty  # [N, frames, C, H, W]
    return ranks.all_gather(torch.cat(pixels)), list(gathered.unbind(1))
