"""A network that was trained on some of the classes is asked for these classes only."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.data.classes import as_label, labels_of
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.networks import HalfUNet, Labels
from diffusion_lab.runs import class_names, load_module
from support.commands import TINY, run, train
from support.small_runs import small_module

FEW = ["sampler.num_steps=2", "num_images=6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two of ten classes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(*TINY, "conditioning=label", "data.classes=[Sneaker,Bag]", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "classes: 7 Sneaker, 8 Bag\n" in done.stdout
    return folder


def pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


def test_sampling_generates_the_trained_classes_in_turn(trained: Path, tmp_path: Path) -> None:
    for name, label in {"default": [], "listed": ["label=[7,8]"]}.items():
        done = run("sample.py", f"run={trained}", *FEW, *label, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        assert "classes: 7 Sneaker, 8 Bag\n" in done.stdout
    assert pictures(tmp_path / "default") == pictures(tmp_path / "listed")
    refused = run("sample.py", f"run={trained}", *FEW, "label=dress", f"hydra.run.dir={tmp_path / 'refused'}")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "error: `label` must be null, random, or among the classes that the network was trained on (7 Sneaker, 8 Bag), "
        "got dress."
    )


@pytest.mark.full
def test_an_evaluation_and_the_library_generate_the_trained_classes(trained: Path, tmp_path: Path) -> None:
    settings = ["num_samples=20", "num_pictures=0", "sampler.num_steps=2", f"hydra.run.dir={tmp_path / 'out'}"]
    done = run("evaluate.py", f"run={trained}", *settings)
    assert done.returncode == 0, done.stderr
    (number,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["numbers"]
    assert number["fingerprint"]["label"] == [7, 8]
    module = load_module(trained)
    assert torch.equal(module.sample(4, num_steps=2), module.sample(4, label=["sneaker", "bag"], num_steps=2))
    with pytest.raises(ValueError, match=r"trained on \(7 Sneaker, 8 Bag\), got 3\."):
        module.sample(4, label=3)


def test_a_class_by_its_number_is_the_only_one_that_is_generated(tmp_path: Path) -> None:
    done = train(*TINY, "conditioning=label", "data.classes=[7]", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    images = SeededImages(load_module(tmp_path))
    assert images.labels(range(5)).tolist() == [7] * 5  # type: ignore[union-attr]


def test_random_labels_are_trained_classes() -> None:
    drawn = labels_of(range(200), "random", 10, (7, 8)).tolist()
    assert set(drawn) == {7, 8}
    assert 60 < drawn.count(7) < 140
    assert set(labels_of(range(400), "random", 10).tolist()) == set(range(10))


def test_a_network_that_was_trained_on_all_classes_takes_all_of_them() -> None:
    assert class_names.proper_subset([1, 0, 2, 1], 3) == ()
    assert class_names.proper_subset([2, 0, 2], 3) == (0, 2)
    assert as_label(None, 3, trained=(0, 2)) is None
    assert labels_of(range(4), None, 3, (0, 2)).tolist() == [0, 2, 0, 2]
    assert SeededImages(small_module(Labels(3, dropout=0.1))).protocol()["label"] == "seed modulo 3"


def test_a_classifier_that_was_trained_on_some_classes_guides_to_these() -> None:
    module = small_module()
    network = HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=())
    guidance = Guidance(classifier=NoisyClassifier(network, module.process, (0, 2)))
    images = SeededImages(module, guidance=guidance)
    assert images.labels(range(4)).tolist() == [0, 2, 0, 2]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"among the classes that the network was trained on \(0, 2\), got 1"):
        SeededImages(module, guidance=guidance, label=1)


def test_the_classes_of_a_run_of_an_earlier_version_are_read_from_its_config(tmp_path: Path) -> None:
    class_names.save(("a", "b", "c"), tmp_path)
    for classes, numbers in ((["c", "0"], (0, 2)), (None, ()), ("b", (1,)), (["a", "b", "c"], ())):
        config = OmegaConf.create({"data": {"classes": classes}})
        assert class_names.load_trained(tmp_path, config, 3) == numbers
