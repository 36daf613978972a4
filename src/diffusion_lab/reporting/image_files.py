"""Writing of generated images to files: a grid, one PNG file per image, and an .npz archive of all images."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.reporting.image_grids import grid, save_picture


class ImageFiles:
    """The files of a set of generated images, which the ranks of a job write together.

    If there are several ranks, the folder must be on a shared file system.
    """

    def __init__(
        self, folder: Path, *, num_pictures: int = 0, num_columns: int = 8, png: bool = False, npz: bool = False
    ) -> None:
        """num_pictures: number of images in the grid samples.png.  num_columns: number of columns of the grid.

        png: whether to write each image as images/SEED.png.
        npz: whether to write samples_NxHxWx3.npz, the format of the evaluator of Dhariwal & Nichol (2021).
        """
        self.folder, self.num_pictures, self.num_columns, self.png, self.npz = (
            folder, num_pictures, num_columns, png, npz,
        )  # fmt: skip
        self._first: list[Tensor] = []
        self.arrange: Callable[[Tensor], Tensor] = lambda images: images
        """Function of the first images, uint8 [N, C, H, W], that returns the images of the grid."""

    def prepare(self) -> None:
        """Remove partial files that an interrupted job left in the folder. Collective: call on all ranks."""
        if Ranks.current().rank == 0:
            shutil.rmtree(self._parts, ignore_errors=True)
        Ranks.current().all_gather_object(None)

    def add(self, seeds: range, pixels: Tensor) -> None:
        """Add a batch of images, uint8 [B, C, H, W], and write their PNG files.  seeds: seeds of the images."""
        pixels = pixels.cpu()
        self._first.append(pixels[: max(0, self.num_pictures - sum(map(len, self._first)))])
        if self.png:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            for seed, image in zip(seeds, pixels, strict=True):
                save_image(image, self._image_path(seed))
        if self.npz:
            self._parts.mkdir(parents=True, exist_ok=True)
            np.save(self._parts / f"{seeds.start:012}.npy", three_channels(pixels))

    def finish(self, shape: tuple[int, int, int]) -> None:
        """Write the grid and the archive. Collective: call on all ranks.  shape: shape of one image, [C, H, W]."""
        ranks = Ranks.current()
        if self.num_pictures:
            own = torch.cat([*self._first, torch.zeros(0, *shape, dtype=torch.uint8)])
            images = ranks.all_gather(own)[: self.num_pictures]
            if ranks.rank == 0:
                images = self.arrange(images)
                save_picture(grid(images, min(self.num_columns, max(len(images), 1))), self.folder / "samples.png")
        if self.npz:
            ranks.all_gather_object(None)  # barrier: all ranks have written their parts
            if ranks.rank == 0:
                join_archive(sorted(self._parts.glob("*.npy")), self.folder)
                shutil.rmtree(self._parts, ignore_errors=True)

    def _image_path(self, seed: int) -> Path:
        return self.folder / "images" / f"{seed:06}.png"

    @property
    def _parts(self) -> Path:
        return self.folder / "npz_parts"


def save_image(image: Tensor, path: Path) -> None:
    """Write one image, uint8 [C, H, W] with 1 or 3 channels, as PNG. The write is atomic."""
    pixels = image.permute(1, 2, 0).numpy()
    with atomic_file(path) as partial:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(partial, format="png")


def three_channels(pixels: Tensor) -> np.ndarray:
    """Convert uint8 images [B, C, H, W] with 1 or 3 channels to RGB with the channels last: [B, H, W, 3]."""
    return np.ascontiguousarray(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def join_archive(parts: list[Path], folder: Path) -> Path:
    """Write samples_NxHxWx3.npz to `folder` and return its path.

    parts: .npy files with uint8 images, [B, H, W, 3]. The files are read one at a time and concatenated to the
        array arr_0.
    """
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    path = folder / f"samples_{'x'.join(map(str, shape))}.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        atomic_file(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    return path
