"""Sequences of frames with the command edit: their files, their smoothness, and error messages."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import run, start
from support.edits import edit_error, run_edit
from support.written_runs import TINY, write_run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights that is conditioned on ten classes."""
    folder = tmp_path_factory.mktemp("runs") / "written"
    return write_run(folder, "data=fashion_mini", "model=unet_tiny", *TINY, "conditioning=label", "clipping=none")


@pytest.fixture(autouse=True)
def without_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of this machine, from which a job estimates its duration, takes seconds to measure."""
    monkeypatch.setattr("diffusion_lab.runs.cost.sampling.print_sampling_cost", lambda *_, **__: None)


SETTINGS = ["trainer=cpu", "sampler.num_steps=3"]


def edit(written: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    work = f"work_folder={folder.parent / 'work'}"
    sampler = [] if any(text.startswith("sampler=") for text in overrides) else ["sampler=ddim"]
    given = [f"run={written}", *sampler, "sampler.num_steps=3", work, *overrides]
    return run("edit.py", *given, f"hydra.run.dir={folder}")


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_a_walk_is_saved_as_pngs_a_grid_and_an_animation_and_its_smoothness_is_measured(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"run={written}", *SETTINGS, "task=walk", "task.num_frames=9", "task.seeds=[4,2,7]", "batch_size=4"]
    plain, captioned = tmp_path / "plain", tmp_path / "captioned"
    value = run_edit(plain, *settings)
    last = f"9 frames of {written} at step 40 are in {plain}: samples.png, samples.webp, images"
    assert capsys.readouterr().out.splitlines()[-1] == last
    numbers = json.loads((plain / "metrics.json").read_text())["numbers"]
    names = ["frame_distance_fashion_cnn_walk_9", "frame_distance_ratio_fashion_cnn_walk_9"]
    assert [number["name"] for number in numbers] == names
    assert numbers[0]["value"] == value > 0
    assert numbers[1]["value"] >= 1
    with Image.open(plain / "samples.webp") as film:
        assert film.n_frames == 9  # type: ignore[attr-defined]
        assert film.size == (224, 224)
    assert run_edit(captioned, *settings, "captions=true", "animation=gif", "metrics=[]") is None
    assert pngs(captioned) == pngs(plain)
    with Image.open(captioned / "samples.gif") as film:
        assert film.size == (224, 224 + 2 * 18)
        first = np.asarray(film.convert("L"))[:224:8, :224:8]
    with Image.open(plain / "images" / "000000.png") as image:
        assert np.abs(first.astype(int) - np.asarray(image)).mean() < 8  # GIFs have 256 colors


@pytest.mark.full
def test_frames_are_the_same_files_on_two_ranks(written: Path, tmp_path: Path) -> None:
    settings = ["task=interpolate", "task.num_frames=10", "batch_size=2"]
    assert edit(written, tmp_path / "one", *settings).returncode == 0
    done = edit(written, tmp_path / "two", *settings, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    assert pngs(tmp_path / "two") == pngs(tmp_path / "one")
    films = [(tmp_path / name / "samples.webp").read_bytes() for name in ("one", "two")]
    assert films[0] == films[1]


@pytest.mark.full
def test_a_killed_job_resumes_with_the_same_files(written: Path, tmp_path: Path) -> None:
    settings = ["task=walk", "task.num_frames=96", "batch_size=4", "metrics=[]"]
    assert edit(written, tmp_path / "complete", *settings).returncode == 0
    work, folder = tmp_path / "work", tmp_path / "out"
    arguments = [f"run={written}", "sampler=ddim", "sampler.num_steps=3", f"work_folder={work}", *settings]
    job = start("edit.py", *arguments, f"hydra.run.dir={folder}")
    until = time.monotonic() + 120
    while len(list(work.glob("*/*.npy"))) < 3 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait().returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in work.glob("*/*.npy")}
    assert 3 <= len(finished) < 24
    again = run("edit.py", *arguments, f"hydra.run.dir={folder}", "keep_images=true")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert pngs(folder) == pngs(tmp_path / "complete")
    assert (folder / "samples.webp").read_bytes() == (tmp_path / "complete" / "samples.webp").read_bytes()


def test_frames_between_source_images_have_the_classes_of_the_images_and_no_guidance(
    written: Path, tmp_path: Path
) -> None:
    given = [*SETTINGS, "images=train", "num_images=2", "task=interpolate", "task.num_frames=5", "animation=false"]
    run_edit(tmp_path / "out", f"run={written}", *given)
    assert len(pngs(tmp_path / "out")) == 5
    assert not list((tmp_path / "out").glob("samples.webp"))
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())["numbers"][0]["fingerprint"]
    assert record["guidance_scale"] == 1
    assert record["sources"]["size"] == 2
    assert "seeds" not in record["task"]


def test_frames_between_image_files_without_a_label_have_no_class_in_the_table(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for number in (0, 1):
        Image.new("L", (28, 28), 200 * number).save(tmp_path / "images" / f"{number}.png")
    given = [*SETTINGS, f"images={tmp_path / 'images'}", "task=walk", "task.num_frames=4", "animation=false"]
    run_edit(tmp_path / "out", f"run={written}", *given)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())["numbers"][0]["fingerprint"]
    assert record["label"] is None
    assert re.search(r"│ label +│ null +│", capsys.readouterr().out)


MISTAKES = {
    "num_frames=8": "`num_frames` must not be given for task=walk, .*task.num_frames sets their number",
    "num_results=2": "`num_results` must not be given for task=walk",
    "mask=half": "`mask` must not be given for task=walk",
    "metrics=[psnr]": r"metrics must be smoothness or \[\] for task=walk, got psnr",
    "captions=yes please": "`captions` must be true or false, got yes please",
    "animation=avi": "`animation` must be false, true, webp, gif or mp4, got avi",
    "fps=0": "fps must be a number of frames per second above 0, got 0",
    "num_images=3": "`images` must be given for num_images=3, got none",
    "task.num_frames=4": "task.num_frames must be at least 8",
    "task.seeds=[1]": r"seeds must be a list of at least two whole numbers of at least 0, got \[1\]",
    "features=inception features.weights=no.pth metrics=[smoothness]": "features.weights must be an existing",
    "task=sweep guidance_scale=3": "guidance_scale must not be given for task=sweep",
    "task=morph label=3": "`label` must be a list of at least two classes for task=morph, got 3",
    "task=morph images=train": "`images` must not be given for task=morph",
    "images=train task.seeds=[0,2]": "task.seeds must not be given together with `images`",
    "images=train task.num_frames=8": "task.num_frames must be at least 64 .*; num_images=2 selects two images",
    "images=train num_images=2 sampler=ancestral": "`sampler` must be ddim with sampler.eta=0 or heun",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_no_images(given: str, written: Path, tmp_path: Path) -> None:
    overrides = [given] if "please" in given else given.split()
    task = [] if any(text.startswith("task=") for text in overrides) else ["task=walk"]
    message = edit_error(tmp_path / "out", f"run={written}", *SETTINGS, *task, *overrides)
    assert re.search(MISTAKES[given], message), message
    assert "\n" not in message
    assert not (tmp_path / "out" / "images").exists()
