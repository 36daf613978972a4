"""Seeds -> images as bytes: image by image the same, on any number of processes and after any interruption."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab import __version__
from diffusion_lab.features import to_uint8
from diffusion_lab.fingerprints import describe, digest
from diffusion_lab.lightning_module import DiffusionModule
from diffusion_lab.processes import Processes
from diffusion_lab.randomness import Purpose, stream
from diffusion_lab.samplers import OnStep, Sampler

RANDOM = "random"


class SampledImages:
    """The images that a network draws, known by their seeds.

    An image is a function of (network, sampler, its seed). Processors round in another way for another number of
    images, so images are always drawn in the same batches: those whose seeds are k * batch_size to
    (k + 1) * batch_size - 1, whole, however few of them are asked for.
    """

    def __init__(
        self,
        module: DiffusionModule,
        *,
        sampler: Sampler | None = None,
        label: int | str | None = None,
        guidance_scale: float = 1.0,
        weights: str | None = None,
        batch_size: int = 100,
        folder: Path | None = None,
    ) -> None:
        """sampler: the module's own if None.  label: of all images; None is seed modulo their number, "random" drawn.

        weights: see `DiffusionModule.sampled_network`.  folder: where finished batches are kept for an interrupted job.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.module, self.sampler, self.batch_size, self.folder = module, sampler or module.sampler, batch_size, folder
        self.label, self.guidance_scale, self.weights = label, guidance_scale, weights
        self.largest_pass = batch_size
        """Images that the network sees at once: fewer than batch_size where that did not fit into memory."""
        module.sampled_network(weights)
        self._labels([0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: [C, H, W]."""
        network = self.module.network
        side = int(network.resolution)  # type: ignore[arg-type]
        return int(network.in_channels), side, side  # type: ignore[arg-type]

    def batches(self, seeds: range) -> list[range]:
        """The seeds cut at the borders of batches.  seeds: neighbours."""
        first, last = seeds.start // self.batch_size, -(-seeds.stop // self.batch_size)
        whole = (range(k * self.batch_size, (k + 1) * self.batch_size) for k in range(first, last))
        return [range(max(part.start, seeds.start), min(part.stop, seeds.stop)) for part in whole]

    def draw(self, seeds: range, on_step: OnStep | None = None) -> Tensor:
        """Images as grey levels, uint8 [B, C, H, W], on the module's device.  seeds: of one batch, or a part of it.

        on_step: see `samplers.OnStep`; told of the whole batch, which then is drawn again in any case.
        Raises ValueError for images that are not finite.
        """
        whole = self._whole(seeds)
        kept = self._kept(whole) if on_step is None else None
        pixels = self._drawn(whole, on_step) if kept is None else kept
        if kept is None:
            self._keep(whole, pixels)
        return pixels[seeds.start - whole.start : seeds.stop - whole.start].to(self.module.device)

    def is_kept(self, seeds: range) -> bool:
        """Whether the batch of these seeds was finished by an earlier job."""
        return self._kept(self._whole(seeds)) is not None

    def protocol(self) -> dict[str, Any]:
        """How the images are made, for the fingerprint of a number about them."""
        classes = self.module.labels.num_classes
        label = f"seed modulo {classes}" if self.label is None else self.label
        return {
            "sampler": describe(self.sampler, omit=("process",)) | {"num_steps": len(self.sampler.times)},
            "schedule": describe(self.module.process.schedule),
            "weights": self.module.weights_protocol(self.weights),
            "guidance_scale": float(self.guidance_scale),
            "label": label if classes else None,
            "batch_size": self.largest_pass,
            "quantisation": "rounded to 256 levels",
        }

    def identity(self, precision: str) -> str:
        """Another one for other weights or another way of drawing: the sha256 of both."""
        content = hashlib.sha256(digest([self.protocol(), precision, __version__]).encode())
        for name, tensor in self.module.sampled_network(self.weights).state_dict().items():
            content.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()

    def _whole(self, seeds: range) -> range:
        """The batch that these seeds belong to."""
        start = seeds.start // self.batch_size * self.batch_size
        return range(start, start + self.batch_size)

    def _drawn(self, seeds: range, on_step: OnStep | None) -> Tensor:
        while True:
            try:
                return torch.cat([self._pass(part, on_step) for part in _parts(seeds, self.largest_pass)])
            except torch.OutOfMemoryError:
                if self.largest_pass == 1:
                    raise
            # Outside of the handler: the error holds on to what did not fit. Noise belongs to seeds: it is the same.
            torch.cuda.empty_cache()
            self.largest_pass = -(-self.largest_pass // 2)

    def _pass(self, seeds: range, on_step: OnStep | None) -> Tensor:
        images = self.module.sample(
            seeds,
            self._labels(seeds),
            sampler=self.sampler,
            guidance_scale=self.guidance_scale,
            weights=self.weights,
            on_step=on_step,
        )
        return to_uint8(images).cpu()

    def _labels(self, seeds: Sequence[int]) -> Tensor | None:
        """int64 [B]; None leaves the choice to the module."""
        classes = self.module.labels.num_classes
        if self.label is None:
            return None
        if not classes:
            raise ValueError(
                f"label must be left out for a network that was trained without classes, got {self.label}."
            )
        if self.label == RANDOM:
            return torch.tensor([int(stream(seed, Purpose.SAMPLED_LABEL).integers(classes)) for seed in seeds])
        if isinstance(self.label, bool) or not isinstance(self.label, int) or not 0 <= self.label < classes:
            raise ValueError(f"label must be in 0..{classes - 1}, or random, got {self.label}.")
        return torch.full((len(seeds),), self.label)

    def _kept(self, seeds: range) -> Tensor | None:
        """A finished batch of an interrupted job, if it is whole."""
        if self.folder is None:
            return None
        try:
            pixels = np.load(self._file(seeds), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return (
            torch.from_numpy(pixels) if pixels.shape == (len(seeds), *self.shape) and pixels.dtype == np.uint8 else None
        )

    def _keep(self, seeds: range, pixels: Tensor) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(seeds)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with partial.open("wb") as opened:
            np.save(opened, pixels.numpy())
        partial.replace(file)  # a kill leaves whole files alone

    def _file(self, seeds: range) -> Path:
        assert self.folder is not None
        return self.folder / f"seeds_{seeds.start:09}.npy"


def _parts(seeds: range, size: int) -> list[range]:
    return [seeds[k : k + size] for k in range(0, len(seeds), size)]


def draw_with_frames(
    images: SampledImages, batches: Sequence[range], num_frames: int, advance: Callable[[int], None]
) -> tuple[Tensor, list[Tensor]]:
    """The images of all processes and how they came to be; every process must ask.

    batches: those of this process.  num_frames: spread over the sampler's steps, the last among them.
    advance: told of every step of every batch.  Returns uint8 [N, C, H, W], and num_frames or fewer of that shape.
    """
    num_steps = len(images.sampler.times)
    shown = sorted({round(frame) for frame in np.linspace(1, num_steps, min(num_frames, num_steps))})  # none for 0
    drawn, frames = [torch.zeros(0, *images.shape, dtype=torch.uint8)], list[Tensor]()

    def draw(seeds: range) -> None:
        own: dict[int, list[Tensor]] = {done: [] for done in shown}

        def on_step(done: int, x_t: Tensor, x_0: Tensor) -> None:
            advance(1)
            if done in own:
                own[done].append(to_uint8(x_t).cpu())

        drawn.append(images.draw(seeds, on_step).cpu())
        if num_frames:
            first = seeds.start % images.batch_size
            # The last ones: a pass that did not fit into memory has left some of its own before.
            whole = torch.stack([torch.cat(own[done])[-images.batch_size :] for done in shown], dim=1)
            frames.append(whole[first : first + len(seeds)])

    processes = Processes.of_this_job()
    with processes.together():
        for seeds in batches:
            draw(seeds)
    nothing = torch.zeros(0, len(shown), *images.shape, dtype=torch.uint8)
    together = processes.gather(torch.cat([nothing, *frames])) if num_frames else nothing  # [N, frames, C, H, W]
    return processes.gather(torch.cat(drawn)), list(together.unbind(1))
