"""A witness of a small network of guided-diffusion, as the printed script writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.foreign_openai import OpenAI, unet

FLAGS = OpenAI(16, 32, (1, 2), 1, (8,), heads=2, classes=5)


def witness(tensors: dict[str, Tensor], file: Path, alpha_bar: Tensor, **changes: Any) -> Path:
    """A witness of the network of FLAGS, computed without this package, with ten DDIM steps.

    alpha_bar: signal level of each of a hundred steps.  changes: arrays that replace those of these names.
    """
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn((2, 2, 3, 16, 16), generator=generator)
    time, label, times = torch.tensor([4.0, 99.0]), torch.tensor([0, 4]), list(range(0, 100, 10))[::-1]
    h = noise
    for t, s in zip(times, [*times[1:], None], strict=True):
        a, b = float(alpha_bar[t]), 1.0 if s is None else float(alpha_bar[s])
        epsilon = unet(FLAGS, tensors, h, torch.full((2,), float(t)), label)[:, :3]
        x_0 = ((h - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)
        h = b**0.5 * x_0 + ((1 - b) / (1 - a)) ** 0.5 * (h - a**0.5 * x_0)
    arrays = {"x": x, "time": time, "label": label, "output": unet(FLAGS, tensors, x, time, label), "noise": noise,
              "times": torch.tensor(times), "clip": True, "samples": h} | changes  # fmt: skip
    given: Any = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    np.savez(file, **given)
    return file
