"""Gray images of discs, squares and crosses, drawn in memory."""

import numpy as np

from diffusion_lab.data import ImageStore
from diffusion_lab.data.images import Images

CLASSES = ("disc", "square", "cross")


class Shapes(ImageStore):
    """Shapes at random places and in random sizes, the same for the same seed and split.

    num_images: images per split.  resolution: height and width in pixels.
    """

    def __init__(self, num_images: int = 3000, *, resolution: int = 28, seed: int = 0) -> None:
        super().__init__(None, channels=1, resolution=resolution)
        self.num_images, self.resolution, self.seed = num_images, resolution, seed

    def locate(self) -> None:
        """Do nothing: the images are drawn, not read."""

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str = "train") -> Images:
        random = np.random.default_rng([self.seed, self.splits().index(split)])
        label = random.integers(len(CLASSES), size=self.num_images)
        size = random.uniform(0.15, 0.35, self.num_images)[:, None, None] * self.resolution
        center = random.uniform(0.35, 0.65, (2, self.num_images))[:, :, None, None] * self.resolution
        y, x = np.abs(np.mgrid[: self.resolution, : self.resolution][:, None] - center)
        inside = np.choose(label[:, None, None], [
            np.hypot(x, y) < size, np.maximum(x, y) < size, (np.minimum(x, y) < size / 3) & (np.maximum(x, y) < size),
        ])  # fmt: skip
        return Images((inside[:, None] * 255).astype(np.uint8), label, CLASSES)
