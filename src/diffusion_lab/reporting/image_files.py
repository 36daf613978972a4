"""Images that pass by -> files: a grid to look at, one PNG each, an archive for other evaluators."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.reporting.image_grids import grid, save_picture


class ImageFiles:
    """What is written of the images of some seeds, each process seeing a part of them.

    With several processes the folder must be one that all see.
    """

    def __init__(
        self, folder: Path, *, num_pictures: int = 0, num_columns: int = 8, png: bool = False, npz: bool = False
    ) -> None:
        """num_pictures: of the first images, in samples.png.  png: each image as images/SEED.png.

        npz: all images as samples_NxHxWx3.npz, which ADM's evaluator (Dhariwal & Nichol 2021) reads.
        """
        self.folder, self.num_pictures, self.num_columns, self.png, self.npz = (
            folder, num_pictures, num_columns, png, npz,
        )  # fmt: skip
        self._first: list[Tensor] = []

    def prepare(self) -> None:
        """Removes what an interrupted job has left, once for all ranks."""
        if Ranks.current().rank == 0:
            shutil.rmtree(self._parts, ignore_errors=True)
        Ranks.current().all_gather_object(None)

    def look(self, seeds: range, pixels: Tensor) -> None:
        """Takes a batch of images, uint8 [B, C, H, W]."""
        pixels = pixels.cpu()
        self._first.append(pixels[: max(0, self.num_pictures - sum(map(len, self._first)))])
        if self.png:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            for seed, image in zip(seeds, pixels, strict=True):
                save_image(image, self.file(seed))
        if self.npz:
            self._parts.mkdir(parents=True, exist_ok=True)
            np.save(self._parts / f"{seeds.start:012}.npy", three_channels(pixels))

    def finish(self, shape: tuple[int, int, int]) -> None:
        """Writes what needs the images of all processes; every process must ask.  shape: of one image, [C, H, W]."""
        ranks = Ranks.current()
        if self.num_pictures:
            own = torch.cat([*self._first, torch.zeros(0, *shape, dtype=torch.uint8)])
            images = ranks.all_gather(own)[: self.num_pictures]
            if ranks.rank == 0:
                save_picture(grid(images, min(self.num_columns, max(len(images), 1))), self.folder / "samples.png")
        if self.npz:
            ranks.all_gather_object(None)  # all parts are written
            if ranks.rank == 0:
                join_archive(sorted(self._parts.glob("*.npy")), self.folder)
                shutil.rmtree(self._parts, ignore_errors=True)

    def file(self, seed: int) -> Path:
        return self.folder / "images" / f"{seed:06}.png"

    @property
    def _parts(self) -> Path:
        return self.folder / "npz_parts"


def save_image(image: Tensor, path: Path) -> None:
    """One image as it is, uint8 [C, H, W] of 1 or 3 channels, as PNG; whole or not at all."""
    partial = path.with_suffix(".partial")
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(partial, format="png")
    partial.replace(path)


def three_channels(pixels: Tensor) -> np.ndarray:
    """Images as colour images with the channels last: uint8 [B, H, W, 3]."""
    return np.ascontiguousarray(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def join_archive(parts: list[Path], folder: Path) -> Path:
    """One .npz of the arrays in all files, arr_0, uint8 [N, H, W, 3]; never more than one part in memory."""
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    path = folder / f"samples_{'x'.join(map(str, shape))}.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    partial = path.with_suffix(".partial")
    with (
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    partial.replace(path)
    return path
