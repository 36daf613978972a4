"""Upsampling of the results of a task by the super-resolution networks of a cascade."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Generator, Task


@dataclass(frozen=True)
class Upsampling(Task):
    """A sample of a super-resolution network, whose condition contains the result of a task at a lower resolution.

    task: task of the network before it, whose source is not used any more.
    """

    task: Task

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.task.name

    def protocol(self) -> dict[str, Any]:
        return self.task.protocol() | {"upsampled": True}

    @property
    def upsampling(self) -> Task:
        return self

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        return generator.to_images(
            generator.sampler.sample(generator.denoiser, generator.noise, generator.condition, generator.on_step)
        )
