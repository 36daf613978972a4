"""The complete `make train`, which takes minutes; run by `make test-full`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lab.data import ImageStore, Selection
from diffusion_lab.features import FashionCNN, RawPixels
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.metrics.nearest import nearest
from diffusion_lab.pixels import to_uint8
from diffusion_lab.runs.load import load_module

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the quick start, or an existing one in DIFFUSION_LAB_QUICKSTART."""
    if existing := os.environ.get("DIFFUSION_LAB_QUICKSTART"):
        return Path(existing)
    run = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(ROOT / "src" / "train.py"), "experiment=quickstart", f"hydra.run.dir={run}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return run


@pytest.fixture(scope="module")
def samples(folder: Path) -> torch.Tensor:
    """500 samples, 50 of each class, as uint8."""
    return to_uint8(load_module(folder).sample(range(500), guidance=Guidance(Strength(1.5))))


def test_the_distance_falls_to_a_tenth_of_its_value_after_200_steps(folder: Path) -> None:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    ((_, callback),) = [(k, v) for k, v in state["callbacks"].items() if "MeasureDistance" in k]
    (first_step, first), *_, (_, last) = callback["history"]
    assert first_step == 200
    assert last <= first / 10
    assert json.loads((folder / "summary.json").read_text())["fd_fashion_cnn_2k_train"] == pytest.approx(last)


def test_a_classifier_recognizes_the_requested_classes(samples: torch.Tensor) -> None:
    network = FashionCNN()
    requested = torch.arange(500) % 10
    found = network(samples)["logits"].argmax(1)
    correct = (found == requested).float()
    assert correct.mean() > 0.9
    assert all(correct[requested == label].mean() > 0.6 for label in range(10))


def test_samples_are_not_copies_of_training_images(folder: Path, samples: torch.Tensor) -> None:
    from omegaconf import OmegaConf

    data = OmegaConf.load(folder / "config.yaml").data.store
    store = ImageStore(
        None, data.path, channels=1, resolution=28, fit="pad", selection=Selection(data.selection.num_held_out)
    )
    train, held_out = (torch.cat(list(store.load(split).batches(500))) for split in ("train", "held_out"))
    pixels = RawPixels()
    training = pixels(train)["pooled"]
    (from_samples, _), (from_held_out, _) = (nearest(pixels(each)["pooled"], training) for each in (samples, held_out))
    # Samples should be as far from the training images as new images of the same distribution; a copy is at 0.
    assert from_samples.median() > 0.7 * from_held_out.median()
    assert from_samples.quantile(0.01) > 0.7 * from_held_out.quantile(0.01)
