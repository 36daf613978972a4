"""The command edit on small stored runs: its files, its numbers, and its error messages."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.setup import training as training_setup
from earlier_runs.outcome import copy_runs
from support.commands import ROOT, run, start
from support.edits import edit_error, run_edit


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored runs: `class_conditional` with classes, `plain` without, a super-resolution run and a latent one."""
    stored, folder = ROOT / "tests" / "earlier_runs" / "v0_3", tmp_path_factory.mktemp("edit") / "runs"
    return copy_runs(stored, folder, ROOT)


@pytest.fixture(scope="module", autouse=True)
def without_estimates() -> Iterator[None]:
    """The speed of this machine, from which a job estimates its duration, takes seconds to measure."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("diffusion_lab.runs.cost.sampling.print_sampling_cost", lambda *_, **__: None)
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images of 40 x 30 pixels, two of which are transparent in their left half."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        image = Image.effect_noise((40, 30), 60).convert("RGBA")
        if number:
            image.paste((0, 0, 0, 0), (0, 0, 20, 30))
        image.save(folder / f"{number}.png")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_an_inpainting_writes_a_grid_results_sources_measurements_and_numbers(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pixels = np.random.default_rng(0).integers(256, size=(9, 28, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=pixels)
    settings = ["images=train", "num_images=3", "num_results=2", "mask=half", "batch_size=4", "num_columns=2"]
    settings += ["metrics=[psnr,consistency,fid]", f"reference={tmp_path}/reference.npz", "save_npz=true"]
    value = run_edit(out, f"run={runs}/class_conditional", *settings)
    assert files(out / "images") == [f"{k:06}.png" for k in range(6)]
    assert files(out / "sources") == files(out / "measurements") == ["000000.png", "000001.png", "000002.png"]
    with Image.open(out / "samples.png") as grid:  # two columns: three sources in two blocks of four rows
        assert grid.size == (2 + 2 * 58, 2 + 8 * 58)
    for k in range(6):
        source, result = array(out / "sources" / f"{k // 2:06}.png"), array(out / "images" / f"{k:06}.png")
        assert np.array_equal(source[:, :7], result[:, :7])
        assert np.array_equal(source[:, 21:], result[:, 21:])
        assert not np.array_equal(source, result)
    record = json.loads((out / "metrics.json").read_text())
    names = ["psnr_train_6", "consistency_train_6", "psnr_of_mean_train_3", "fd_fashion_cnn_6_reference"]
    numbers = {number["name"]: number for number in record["numbers"]}
    assert list(numbers) == names
    assert numbers["consistency_train_6"]["value"] == 0
    assert numbers["psnr_train_6"]["value"] == -value
    for number in numbers.values():
        assert number["fingerprint"]["task"]["pasted"]
        assert number["fingerprint"]["task"]["posterior"]["name"] == "DDRM"
        assert number["fingerprint"]["seed"] == 0
    assert not list((tmp_path / "out" / "work").iterdir())
    with np.load(out / "samples_6x28x28x3.npz") as archive:
        assert np.array_equal(archive["arr_0"][5, :, :, 0], array(out / "images" / "000005.png"))


def test_transparent_pixels_of_image_files_are_filled(runs: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").unlink()
    out = tmp_path / "out"
    settings = ["num_pictures=0", "preparation.fit=resize", "animation=true", "num_pictures=1", "num_frames=2"]
    run_edit(out, f"run={runs}/plain", f"images={photos}", "posterior=replace", *settings)
    for k in range(2):
        source, result = array(out / "sources" / f"{k:06}.png"), array(out / "images" / f"{k:06}.png")
        assert np.array_equal(source[:, 14:], result[:, 14:])
        assert (source[:, :14] == 255).mean() > 0.9  # transparent pixels are composited on white
        assert (result[:, :14] != 255).any()
    assert (out / "samples.webp").is_file()
    assert not (out / "metrics.json").exists()  # the colors below transparent pixels are unknown
    with pytest.raises(UserError, match="metrics must not contain psnr for mask=transparent"):
        run_edit(tmp_path / "psnr", f"run={runs}/plain", f"images={photos}", *settings, "metrics=[consistency,psnr]")


@pytest.mark.parametrize(
    ("mode", "known", "filled"),
    [("L", 0, 255), ("RGBA", (0, 0, 0, 0), (255, 255, 255, 140)), ("LA", (90, 255), (255, 20))],
)
def test_a_mask_file_follows_the_fit_of_the_source_and_fills_white_pixels_or_without_any_transparent_ones(
    mode: str, known: Any, filled: Any, runs: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = Image.new(mode, (40, 30), known)
    mask.paste(filled, (20, 0, 40, 30))
    mask.save(tmp_path / "mask.png")
    settings = [f"images={photos}/1.png", "mask=file", f"mask.path={tmp_path}/mask.png", "preparation.fit=resize"]
    run_edit(tmp_path / "out", f"run={runs}/plain", *settings)
    note = f"{tmp_path}/mask.png has no white pixels, so that its transparent pixels are filled."
    assert (note in caplog.messages) == (mode == "LA")
    source, result = (array(tmp_path / "out" / name / "000000.png") for name in ("sources", "images"))
    assert np.array_equal(source[:, :14], result[:, :14])  # the center square of 30 pixels is cropped
    assert not np.array_equal(source[:, 14:], result[:, 14:])


def test_an_inversion_saves_its_noises_and_measures_its_error(runs: Path, tmp_path: Path) -> None:
    settings = ["images=train", "num_images=3", "batch_size=2", "task=invert", "save_noises=true", "metrics=[rmse]"]
    error = run_edit(tmp_path, f"run={runs}/plain", *settings, "save_png=false")
    with np.load(tmp_path / "noises.npz") as archive:
        assert (archive["arr_0"].shape, archive["arr_0"].dtype) == ((3, 1, 28, 28), np.float32)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["numbers"][0]["name"] == "rmse_train_3"
    assert record["numbers"][0]["value"] == error < 1
    assert record["evaluations"] == 8  # four steps to noise, and four back


def test_an_edit_without_metrics_writes_its_animation_and_reports_no_images_of_an_interrupted_job(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["images=train", "num_images=2", "mask=half", "sampler.num_steps=3", "num_frames=3", "metrics=[]"]
    with caplog.at_level("INFO"):
        assert run_edit(tmp_path, f"run={runs}/plain", *settings, "animation=gif") is None
    assert not (tmp_path / "metrics.json").exists()
    with Image.open(tmp_path / "samples.gif") as animation:
        assert getattr(animation, "n_frames", 1) > 1
    assert not [text for text in caplog.messages if "are reused" in text]


def test_known_pixels_are_pasted_after_the_decoder_of_a_latent_space(runs: Path, tmp_path: Path) -> None:
    settings = ["images=train", "num_images=2", "batch_size=2", "mask=half", "sampler.num_steps=2"]
    run_edit(tmp_path, f"run={runs}/latent", *settings, "posterior=pigdm", "posterior.num_iterations=2")
    source, result = (array(tmp_path / name / "000000.png") for name in ("sources", "images"))
    assert np.array_equal(source[:, :8], result[:, :8])
    task = json.loads((tmp_path / "metrics.json").read_text())["numbers"][0]["fingerprint"]["task"]
    assert (task["posterior"]["name"], task["pasted"]) == ("PiGDM", True)
    with pytest.raises(UserError, match=r"`posterior` must be dps, pigdm or mmps .* got ddrm"):
        run_edit(tmp_path / "ddrm", f"run={runs}/latent", *settings, "posterior=ddrm")


def test_an_inpainting_network_for_latents_fills_the_hole_and_keeps_the_known_pixels(
    runs: Path, tmp_path: Path
) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [
            "data.resolution=32", "model=dit_s", "model.channels=16", "model.depth=1", "model.num_heads=2",
            "space=sd_latents", f"space.autoencoder.pretrained_model_name_or_path={runs}/autoencoder",
            "masking=halves", "data.max_images=100", "data.batch_size=2", "trainer=cpu", "trainer.precision=32-true",
            "trainer.max_steps=1", "callbacks.sample_images=null", "callbacks.measure_distance=null",
            f"run_folder={tmp_path}/run",
        ])  # fmt: skip
    trained = training_setup.build(config)
    assert trained.module.network.condition_channels == 5
    trained.trainer.fit(trained.module, datamodule=trained.datamodule)
    trained.trainer.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    OmegaConf.save(config, tmp_path / "run" / "config.yaml", resolve=True)
    settings = ["images=train", "num_images=2", "batch_size=2", "mask=half", "sampler.num_steps=2"]
    run_edit(tmp_path / "out", f"run={tmp_path}/run", *settings)
    source, result = (array(tmp_path / "out" / name / "000001.png") for name in ("sources", "images"))
    assert np.array_equal(source[:, :8], result[:, :8])
    assert np.array_equal(source[:, 24:], result[:, 24:])
    assert not np.array_equal(source[:, 8:24], result[:, 8:24])
    measured = array(tmp_path / "out" / "measurements" / "000001.png")
    assert set(measured[:, 8:24].flatten().tolist()) == {128}  # what the network receives is shown in pixels, gray
    task = json.loads((tmp_path / "out" / "metrics.json").read_text())["numbers"][0]["fingerprint"]["task"]
    assert (task["posterior"], task["pasted"]) == ({"name": "InpaintingNetwork"}, True)


HALF = ["images=train", "mask=half"]
BY_DEFAULT = 21
"""Number of mistakes that are made by default; the others are of the same kinds, for `make test-full`."""

MISTAKES: list[tuple[list[str], str]] = [
    (["mask=half"], "`images` must be a split of the run's data set, or an image file, a folder"),
    (
        ["images=nowhere", "mask=half"],
        r"`images` must be a split of the run's data set \(train\), or an image file, .*, got nowhere\.$",
    ),
    (["images={TMP}/broken.png", "mask=half"], "cannot be read"),
    (["images=train"], "`mask` must be given for task=inpaint if the source images have no transparent pixels"),
    (["images={TMP}/gray.png", "mask=half"], "must be at least 60 .* for preparation.fit=pad, got 28"),
    ([*HALF, "num_images=20000"], r"num_images must be at most 10,000 .* got 20000."),
    ([*HALF, "num_results=0"], "num_results must be a whole number of at least 1, got 0."),
    ([*HALF, "task.noise=-1"], "task: noise must be a finite number of at least 0, got -1"),
    ([*HALF, "posterior=ddrm", "sampler=heun"], "`sampler` must be DDIM for posterior=ddrm, got Heun."),
    (["images=train", "mask=file", "mask.path={TMP}/black.png"], "got a mask that fills no pixel"),
    (["images=train", "task=variation", "task.strength=0"], "strength must be above 0 .* and below 1 .* got 0"),
    (
        ["images=train", "task=variation", "posterior=dps"],
        "`posterior` must not be given for task=variation",
    ),
    (["images=train", "task=colorize"], "task=colorize: colorization requires images of 3 channels .* got 1."),
    ([*HALF, "captions=true"], "captions must be false for task=inpaint, .* got True."),
    (["images={TMP}/gray.png", "mask=half", "preparation.fit=crop"], "preparation: fit must be one of .* got crop."),
    ([*HALF, "metrics=[diversity]"], "num_results must be at least 2 for metrics=diversity, got 1."),
    (
        [*HALF, "run={RUNS}/upsampler"],
        r"got .*upsampler, whose network receives low-resolution images; cascade=\[.*upsampler\] upsamples",
    ),
    ([*HALF, "run={RUNS}/class_conditional", "images={TMP}/black.png", "guidance_scale=2"], "`label` must be given"),
    (["images={TMP}/empty", "mask=half"], "images={TMP}/empty must contain images, got none."),
    (["images=[train,test]", "mask=half"], "`images` must be .* got a list."),
    (["images={TMP}/gray.png", "preparation.fit=resize"], "`mask` must be given for task=inpaint"),
    ([*HALF, "num_images=0"], "num_images must be a whole number of at least 1, got 0."),
    ([*HALF, "task.noise=much"], "task.noise must be a number, got much."),
    (
        [*HALF, "posterior=magic"],
        "posterior must be one of ddnm, ddrm, dps, mmps, network, pigdm, repaint, replace, got magic",
    ),
    ([*HALF, "mask.side=center"], "mask.side must be left or right or top or bottom or middle, got center."),
    (["images=train", "mask=rectangle", "mask.box=[20,0,20,9]"], "mask.box must be a rectangle inside the images"),
    (["images=train", "mask=color", "mask.color=[1,2,3]"], "mask.color must be one gray level"),
    (["images=train", "mask=file"], "mask.path must be given, got no value."),
    (["images=train", "mask=file", "mask.path={TMP}/none.png"], r"mask.path must be an image file, got .*none.png \("),
    (["images=train", "mask=file", "mask.path={TMP}/white.png"], "got a mask that fills all pixels of source image 0"),
    (["images=train", "task=variation", "task.strength=1"], "strength must be above 0 .* and below 1 .* got 1"),
    (["images=train", "task=deblur", "mask=half"], "`mask` must not be given for task=deblur, which fills no pixels"),
    (["images=train", "task=style", "label=3"], "`label` must be null for a network that was trained without classes"),
    (["images=train", "task=style"], "`run` must be trained with conditioning=label"),
    ([*HALF, "label=3"], "`label` must be null for a network that was trained without classes, got 3."),
    (
        ["images=train", "task=super_resolution", "task.factor=3"],
        "task=super_resolution: factor must be at least 1 and divide the height",
    ),
    (["images=train", "task=invert", "sampler=ancestral"], "`sampler` must be ddim with sampler.eta=0"),
    ([*HALF, "metrics=[reconstruction]"], "metrics must measure images for an edit, .* got reconstruction."),
    ([*HALF, "save_noises=true"], "save_noises must be false for task=inpaint, got True."),
    (["images=train", "mask=rectangle", "mask.box=[0,0,28,28]"], "`mask` must fill a part .* fills all pixels"),
    (["images=train", "mask=file", "mask.path={TMP}/gray.png"], "with 60 x 60 pixels for a source image with 28 x 28"),
    (["images=train", "mask=file", "mask.path={TMP}/broken.png"], "mask.path must be an image file, .* cannot be read"),
    (["images=train", "task=variation", "metrics=[consistency]"], "must not contain consistency for task=variation"),
    (
        ["images=held_out", "mask=half"],
        r"`images` must be a split of the run's data set \(train\), .*, got held_out; data\.num_held_out=NUMBER",
    ),
    (["images=nowhere.png", "mask=half"], "`images` must be .*, got nowhere.png, which does not exist."),
    ([*HALF, "animation=webm"], "`animation` must be false, true, webp, gif or mp4, got webm."),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "empty").mkdir()
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for name, side, level in (("gray", 60, 100), ("black", 28, 0), ("white", 28, 255)):
        Image.new("L", (side, side), level).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(*mistake, id=" ".join(mistake[0]), marks=[] if number < BY_DEFAULT else pytest.mark.full)
        for number, mistake in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_explained_in_one_sentence_before_anything_is_drawn(
    runs: Path, pictures: Path, overrides: list[str], message: str, tmp_path: Path
) -> None:
    for name, place in {"{TMP}": str(pictures), "{RUNS}": str(runs)}.items():
        overrides, message = [text.replace(name, place) for text in overrides], message.replace(name, place)
    given = {text.partition("=")[0]: text for text in (f"run={runs}/plain", *overrides)}
    shown = edit_error(tmp_path / "out", *given.values())
    assert re.search(message, shown), shown
    assert "\n" not in shown
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.full
def test_two_ranks_and_a_resumed_job_write_the_same_files(runs: Path, tmp_path: Path) -> None:
    settings = [
        f"run={runs}/class_conditional", "images=train", "num_images=60", "num_results=2", "mask=random_rectangle",
        "sampler.num_steps=8", "posterior=mmps", "metrics=[psnr,diversity,fid]", "batch_size=8",
    ]  # fmt: skip

    def arguments(name: str) -> list[str]:
        return [*settings, f"work_folder={tmp_path / name}_work", f"hydra.run.dir={tmp_path / name}"]

    assert run("edit.py", *arguments("one")).returncode == 0
    done = run("edit.py", *arguments("two"), "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    job, until = start("edit.py", *arguments("killed")), time.monotonic() + 120
    while len(list(tmp_path.glob("killed_work/*/*.npy"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait().returncode == -signal.SIGKILL
    again = run("edit.py", *arguments("killed"))
    assert again.returncode == 0, again.stderr
    assert "images were generated before an interruption and are reused." in again.stderr
    expected = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.png")}
    assert len(expected) == 120 + 60 + 60 + 1
    for name in ("two", "killed"):
        found = {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
        assert found == expected
    records = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two", "killed")]
    values = [{number["name"]: number["value"] for number in record["numbers"]} for record in records]
    assert values[0] == values[1] == values[2]
    assert len(values[0]) == 4
