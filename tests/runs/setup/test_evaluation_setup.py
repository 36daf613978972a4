"""Metrics of an evaluation as they are built from the config of a run."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.selection import Selection
from diffusion_lab.runs.setup.evaluation import build_metrics


@pytest.mark.parametrize(
    ("splits", "num_held_out", "expected"),
    [(("train", "test"), 2, "test"), (("train",), 2, "held_out"), (("train",), 0, "train")],
)
def test_means_over_images_are_measured_on_images_that_the_network_was_not_trained_on_if_there_are_any(
    splits: tuple[str, ...], num_held_out: int, expected: str, tmp_path: Path
) -> None:
    for split in splits:
        (tmp_path / "images" / split).mkdir(parents=True)
        for k in range(5):
            pixels = np.full((8, 8), 10 * k + len(split), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{k}.png")
    store = ImageStore(
        None, path=tmp_path / "images", label_column=None, channels=1, resolution=8, cache_folder=tmp_path / "cache",
        selection=Selection(num_held_out=num_held_out),
    )  # fmt: skip
    quantity = {"_target_": "support.fake_features.Brightness"}
    node = {"_target_": "diffusion_lab.metrics.MeanOverImages", "quantity": quantity}
    _, ((metric, images),) = build_metrics(OmegaConf.create({"metrics": {"light": node}}), store)
    assert (metric.split, metric.choice) == (expected, "light")
    assert len(images) == {"test": 5, "held_out": 2, "train": 5}[expected]
