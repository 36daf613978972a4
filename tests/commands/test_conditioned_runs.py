"""Inpainting networks and image-to-image networks from the command line."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from diffusion_lab.errors import UserError
from diffusion_lab.generation.condition_images import MaskedImages, PairedImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.paths import CONF
from diffusion_lab.runs.find import find_targets
from diffusion_lab.runs.setup import network_check
from diffusion_lab.runs.setup import sampling as sampling_setup
from diffusion_lab.runs.setup import training as training_setup
from support.commands import ROOT, TINY, run

FOLDER = ["data=folder", "data.path={photos}"]
LATENT = [
    *("data.resolution=32", "model=dit_s", "model.channels=16", "model.depth=1", "model.num_heads=2"),
    "space=sd_latents",
    f"space.autoencoder.pretrained_model_name_or_path={ROOT}/tests/earlier_runs/v0_3/autoencoder",
]
"""Gray images of 32 x 32 pixels, with 4 x 4 x 4 latents."""

METRICS = "callbacks.measure_distance=null"
SAMPLES = ["callbacks.sample_images={num_images: 3, num_columns: 3, num_frames: 0}", "sampler.num_steps=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 24 random color images in `photos`, 4 of them in a test split, and grayscale `edges`."""
    root, generator = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for k in range(24):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for name, image in (("photos", pixels), ("edges", 255 - pixels[:, :, 0])):
            path = root / name / ("test" if k < 4 else "train") / f"{k:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def train(folder: Path, *settings: str) -> Path:
    done = run("train.py", *TINY[:-3], TINY[-1], *settings, *SAMPLES, METRICS, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, folders: Path) -> Path:
    """Return a run folder after two steps of a network that colors the edges."""
    places = [f"data.path={folders / 'photos'}", f"data.condition_path={folders / 'edges'}"]
    settings = ["data=folder", "data.resolution=16", "data.condition_channels=1", "data.horizontal_flip=true"]
    return train(tmp_path_factory.mktemp("paired") / "run", *settings, *places)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder after two steps of an inpainting network on 100 images."""
    settings = ["masking=halves", "data.max_images=100", "data.num_held_out=20", "conditioning=label"]
    return train(tmp_path_factory.mktemp("masked") / "run", *settings)


@pytest.fixture
def initialized_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def images(*overrides: str) -> SeededImages:
    config = compose("sample", overrides=["trainer=cpu", "output_folder=somewhere", *overrides])
    (target,) = find_targets(config)
    fabric = sampling_setup.launch_fabric(config)
    return sampling_setup.build_images(config, target, fabric)[0]


def size_of_grid(folder: Path) -> tuple[int, int]:
    with Image.open(folder / "samples" / "step_0000002.png") as grid:
        return grid.size


@pytest.mark.usefixtures("initialized_hydra")
def test_paired_runs_are_sampled_with_the_condition_images_of_the_test_split(paired: Path, folders: Path) -> None:
    source = images(f"run={paired}").condition_images
    assert isinstance(source, PairedImages)
    assert (source.data.split, len(source.data.images), source.channels) == ("test", 4, 1)
    shown = {tuple(image.flatten().tolist()) for image in source.pictures(range(4))}
    files = sorted((folders / "edges" / "test").glob("*.png"))
    assert shown == {tuple(np.asarray(Image.open(file)).flatten().tolist()) for file in files}
    # Each cell is a condition image and a sample, of 16 x 16 pixels that are shown at 4 times their size.
    assert size_of_grid(paired) == (3 * (2 * 64 + 2) + 2, 64 + 4)


@pytest.mark.usefixtures("initialized_hydra")
def test_moved_images_are_found_and_others_are_refused(paired: Path, folders: Path, tmp_path: Path) -> None:
    for name in ("photos", "edges"):
        shutil.copytree(folders / name, tmp_path / name)
    places = [f"data.path={tmp_path / 'photos'}", f"data.condition_path={tmp_path / 'edges'}"]
    assert isinstance(images(f"run={paired}", *places).condition_images, PairedImages)
    with pytest.raises(UserError, match=r"data.condition_path must have the images that .* trained on, got .*photos"):
        images(f"run={paired}", f"data.condition_path={folders / 'photos'}")


@pytest.mark.full
@pytest.mark.usefixtures("initialized_hydra")
def test_masked_runs_are_sampled_with_holes_in_held_out_images(masked: Path) -> None:
    source = images(f"run={masked}").condition_images
    assert isinstance(source, MaskedImages)
    assert (source.data.split, len(source.data.images)) == ("held_out", 20)
    assert size_of_grid(masked) == (3 * (2 * 56 + 2) + 2, 56 + 4)
    with pytest.raises(UserError, match=r"`label` must be null .*\(the labels .* in the split held_out\), got 3"):
        images(f"run={masked}", "label=3")
    with pytest.raises(UserError, match=r"data.condition_path must not be given for a data set without paired images"):
        images(f"run={masked}", "data.condition_path=somewhere")
    done = run("export.py", f"run={masked}", "format=safetensors", "num_images=4", f"output={masked}_exported")
    assert "error: num_images must be null or 0 for a network that is conditioned on images, got 4" in done.stderr


@pytest.mark.usefixtures("initialized_hydra")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["masking=strokes", "model.condition_channels=1"],
            "model.condition_channels must be 2 with the given mas",
        ),
        (["masking=halves", "low_resolution=area", "low_resolution.resolution=14"], "got low_resolution and masking"),
        (
            ["masking=halves", "data.condition_column=image"],
            "got masking and data.condition_column=image",
        ),
        (
            ["low_resolution=area", "low_resolution.resolution=14", "space=sd_latents"],
            "`low_resolution` must be none for space=sd_latents .*, got LowResolution",
        ),
        (
            [*LATENT, "masking=halves", "model.condition_channels=2"],
            "model.condition_channels must be 5 with the given masking, got 2",
        ),
        (
            [*LATENT, "data.condition_column=image", "data.condition_channels=3"],
            "data.condition_channels must be 1 for an autoencoder of images with data.channels=1, got 3",
        ),
        (["masking=random_rectangles", "masking.max_side=0.1"], "min_side and max_side must .*, got 0.2 and 0.1"),
        (["data.condition_column=edges"], "data.condition_column must be one of image for .*, got edges"),
        (["data.condition_path=nowhere"], "data.condition_path must be a folder of images, got .*, which does not"),
        (["data.condition_path={photos}"], "data.condition_path must be null unless the images are a folder of"),
        ([*FOLDER, "data.condition_path={edges}/train"], "has none for 20 of 20 images: train/04.png, train/05"),
        ([*FOLDER, "data.condition_column=edges"], "data.condition_column must be null for a folder of image files"),
        (
            [*FOLDER, "data.condition_path={edges}", "data.condition_channels=2"],
            "channels must be 1 .* got 2",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_condition_images_that_do_not_fit_are_refused_before_training(
    folders: Path, overrides: list[str], message: str
) -> None:
    places = {name: str(folders / name) for name in ("photos", "edges")}
    settings = [override.format(**places) for override in overrides]
    tiny = [setting for setting in TINY if not setting.startswith("model") or not set(LATENT) <= set(overrides)]
    config = compose("train", overrides=["run_folder=somewhere", *tiny, *settings])
    with pytest.raises(UserError, match=message):
        training_setup.build(config)


@pytest.mark.full
@pytest.mark.parametrize("name", ["masked", "paired"])
def test_runs_are_resumed_sampled_and_evaluated(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder, work = request.getfixturevalue(name), f"work_folder={tmp_path / 'work'}"
    done = run("train.py", f"resume={folder}", "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    for name_of_job, which in (("all", "num_images=6"), ("one", "image=5")):
        settings = [which, "sampler.num_steps=2", work, f"hydra.run.dir={tmp_path / name_of_job}"]
        done = run("sample.py", f"run={folder}", *settings)
        assert done.returncode == 0, done.stderr
        assert "conditions.png" in done.stdout
    files = [tmp_path / job / "images" / "000005.png" for job in ("all", "one")]
    assert files[0].read_bytes() == files[1].read_bytes()
    settings = ["metrics=[fid,nll]", "metrics.nll.num_images=2", "num_samples=20", "features=efficientnet"]
    settings += ["sampler.num_steps=2", work, f"hydra.run.dir={tmp_path / 'eval'}"]
    done = run("evaluate.py", f"run={folder}", *settings)
    assert done.returncode == 0, done.stderr
    split = {"masked": "held_out", "paired": "test"}[name]
    for number in json.loads((tmp_path / "eval" / "metrics.json").read_text())["numbers"]:
        assert number["fingerprint"]["condition"]["from"] == f"images of {split}"


def test_an_edit_fills_holes_with_the_network_that_was_trained_for_it(masked: Path, tmp_path: Path) -> None:
    settings = ["images=held_out", "num_images=4", "mask=half", "sampler.num_steps=2", "num_pictures=0"]
    done = run("edit.py", f"run={masked}", *settings, f"hydra.run.dir={tmp_path / 'edit'}")
    assert done.returncode == 0, done.stderr
    (number,) = json.loads((tmp_path / "edit" / "metrics.json").read_text())["numbers"]
    assert number["fingerprint"]["task"]["posterior"] == {"name": "InpaintingNetwork"}
    assert len(list((tmp_path / "edit" / "images").glob("*.png"))) == 4
    for choice in ("posterior=ddrm", "task=variation", "task=deblur"):
        refused = run("edit.py", f"run={masked}", *settings[:2], choice)
        assert refused.returncode == 1
        assert "`task` must be inpaint with posterior=network for" in refused.stderr


@pytest.mark.usefixtures("initialized_hydra")
def test_a_network_for_latents_of_pairs_receives_as_many_channels_as_latents_have(folders: Path) -> None:
    settings = [*FOLDER, "data.condition_path={edges}", "data.channels=1", *LATENT, "callbacks.measure_distance=null"]
    places = [setting.format(**{name: folders / name for name in ("photos", "edges")}) for setting in settings]
    built = training_setup.build(compose("train", overrides=["run_folder=somewhere", *places]))
    assert (built.module.network.condition_channels, built.datamodule.condition_channels(1)) == (4, 1)
    assert network_check.example_inputs(built.module, built.datamodule)[-1].image.shape == (2, 4, 4, 4)


@pytest.mark.full
def test_an_inpainting_network_for_latents_is_trained_sampled_and_used_in_edits(tmp_path: Path) -> None:
    peers, folder = str(Path(sys.prefix, "peers")), tmp_path / "run"
    settings = [*LATENT, "masking=halves", "data.max_images=100", "data.num_held_out=20", "data.batch_size=8"]
    settings += ["trainer.max_steps=1", "trainer.precision=32-true", METRICS, *SAMPLES, f"hydra.run.dir={folder}"]
    done = run("train.py", *settings, PYTHONPATH=peers)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "samples" / "step_0000001.png") as grid:
        assert grid.size == (3 * (2 * 64 + 2) + 2, 64 + 4)
    done = run("sample.py", f"run={folder}", "num_images=2", f"hydra.run.dir={tmp_path / 'samples'}", PYTHONPATH=peers)
    assert done.returncode == 0, done.stderr
    assert "conditions.png" in done.stdout
    settings = ["images=held_out", "num_images=2", "mask=half", "num_pictures=0", f"hydra.run.dir={tmp_path / 'edit'}"]
    done = run("edit.py", f"run={folder}", *settings, PYTHONPATH=peers)
    assert done.returncode == 0, done.stderr
    source, result = (np.asarray(Image.open(tmp_path / "edit" / name / "000001.png")) for name in ("sources", "images"))
    is_kept = (source == result).all(axis=0)
    assert is_kept[:8].all()
    assert is_kept[24:].all()
    assert not is_kept[8:24].any()
