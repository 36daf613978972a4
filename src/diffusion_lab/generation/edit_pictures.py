"""Pictures of an edit: a grid of sources, measurements and results, and the image files of sources and measurements."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.pixels import to_uint8
from diffusion_lab.reporting.image_files import save_image


class EditPictures:
    """The pictures of the sources of an edit.

    images: results of the edit.
    num_sources: number of sources in the grid.  num_columns: number of columns of the grid, each with one source.
    """

    def __init__(self, images: EditedImages, num_sources: int, num_columns: int | None) -> None:
        self.images, self.num_sources = images, num_sources
        self.num_columns = max(min(num_columns or 8, num_sources), 1)

    @property
    def num_results(self) -> int:
        """Number of results in the grid."""
        return self.num_sources * self.images.num_results

    def of_source(self, number: int) -> list[Tensor]:
        """Return the source image, and what the network receives of it, if this is another image: uint8 [C, H, W]."""
        sources = self.images.sources.batch([number], self.images.device)
        picture = self.images.task.picture(sources)
        found = [sources.images] if picture is None else [sources.images, picture]
        return [to_uint8(each)[0].cpu() for each in found]

    def arrange(self, results: Tensor) -> Tensor:
        """Return the images of the grid, uint8 [N, C, H, W]: below each source its measurement and its results.

        results: results of the first sources, uint8 [num_results, C, H, W].
        """
        rows: list[Tensor] = []
        for start in range(0, self.num_sources, self.num_columns):
            numbers = range(start, min(start + self.num_columns, self.num_sources))
            per_source = results.view(self.num_sources, -1, *results.shape[1:])
            columns = [torch.stack([*self.of_source(k), *per_source[k]]) for k in numbers]
            columns += [torch.zeros_like(columns[0])] * (self.num_columns - len(columns))
            rows.append(torch.stack(columns, dim=1).flatten(0, 1))
        return torch.cat(rows)

    def save(self, folder: Path) -> None:
        """Write sources/NUMBER.png and, if there are measurements, measurements/NUMBER.png. Call on all ranks."""
        for number in Ranks.current().shard(range(len(self.images.sources))):
            for name, image in zip(("sources", "measurements"), self.of_source(number), strict=False):
                (folder / name).mkdir(parents=True, exist_ok=True)
                save_image(image, folder / name / f"{number:06}.png")

    def save_noises(self, batches: Sequence[range], folder: Path) -> None:
        """Write noises.npz with the noise of each result as `arr_0`, float32 [N, C, H, W]. Call on all ranks.

        batches: indices of all results.
        """
        ranks = Ranks.current()
        own = [self.images.noises(batch) for batch in ranks.shard(batches)]
        network = self.images.module.network
        empty = torch.zeros(0, network.in_channels, network.resolution, network.resolution)
        noises = ranks.all_gather(torch.cat([empty, *own]))
        if ranks.rank == 0:
            with atomic_file(folder / "noises.npz") as partial, partial.open("wb") as file:
                np.savez(file, arr_0=noises.numpy())
