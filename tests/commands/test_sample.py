"""`src/sample.py` and `src/compare.py` on a small run, in separate processes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import TINY, run, start


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 300 images of ten classes."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *TINY, "conditioning=label", "data.max_images=300", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def sample(trained: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    work = f"work_folder={folder.parent / 'work'}"
    return run("sample.py", f"run={trained}", "sampler.num_steps=4", work, *overrides, f"hydra.run.dir={folder}")


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_images_are_saved_as_files_a_grid_an_animation_and_an_archive(trained: Path, tmp_path: Path) -> None:
    done = sample(trained, tmp_path / "out", "num_images=20", "animation=true", "num_frames=3", "save_npz=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "device: CPU, 32-true; trainer.precision=... changes it"
    files = "samples.png, samples.webp, samples_20x28x28x3.npz, images"
    assert done.stdout.splitlines()[-1] == f"20 images of {trained} at step 2 are in {tmp_path / 'out'}: {files}"
    assert sorted(pictures(tmp_path / "out")) == [f"{seed:06}.png" for seed in range(20)]
    with Image.open(tmp_path / "out" / "samples.png") as grid, Image.open(tmp_path / "out" / "samples.webp") as film:
        assert grid.size == film.size == (2 + 10 * (2 * 28 + 2), 2 + 2 * (2 * 28 + 2))  # one class per column
    with (
        np.load(tmp_path / "out" / "samples_20x28x28x3.npz") as archive,
        Image.open(tmp_path / "out" / "images" / "000019.png") as last,
    ):
        assert np.array_equal(archive["arr_0"][19, :, :, 0], np.asarray(last))
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def test_classes_are_named_and_the_animation_is_a_gif(trained: Path, tmp_path: Path) -> None:
    settings = ["num_images=4", "num_pictures=4", "animation=gif", "num_frames=3"]
    named = sample(trained, tmp_path / "named", "label=[sneaker,Bag]", *settings)
    assert named.returncode == 0, named.stderr
    classes = "classes: 0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag, "
    assert classes + "9 Ankle boot" in named.stdout.splitlines()
    numbered = sample(trained, tmp_path / "numbered", "label=[7,8]", *settings)
    assert numbered.returncode == 0, numbered.stderr
    assert pictures(tmp_path / "named") == pictures(tmp_path / "numbered")
    with Image.open(tmp_path / "named" / "samples.gif") as film:
        assert (film.format, film.n_frames) == ("GIF", 3)  # type: ignore[attr-defined]


@pytest.mark.full
def test_an_image_alone_or_on_two_ranks_is_the_same_file(trained: Path, tmp_path: Path) -> None:
    label = ["label=7", "guidance_scale=2"]
    assert sample(trained, tmp_path / "all", "num_images=40", *label).returncode == 0
    together = pictures(tmp_path / "all")
    assert len(set(together.values())) == 40
    assert sample(trained, tmp_path / "one", "image=37", *label).returncode == 0
    assert pictures(tmp_path / "one") == {"000037.png": together["000037.png"]}
    done = sample(trained, tmp_path / "some", "seed=30", "image=[7,2]", "trainer.devices=2", *label)
    assert done.returncode == 0, done.stderr
    assert pictures(tmp_path / "some") == {name: together[name] for name in ("000032.png", "000037.png")}


def test_a_killed_job_resumes_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    arguments = [
        f"run={trained}", "sampler.num_steps=8", "num_images=240", "save_png=false", "save_npz=true",
        f"work_folder={tmp_path / 'work'}", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    job = start("sample.py", *arguments)
    until = time.monotonic() + 120
    while len(list((tmp_path / "work").glob("*/*.npy"))) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait().returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*.npy")}
    assert 5 <= len(finished) < 240 // 16
    again = run("sample.py", *arguments, "keep_images=true")
    assert again.returncode == 0, again.stderr
    note = f"note: {16 * len(finished):,} images were generated before an interruption and are reused."
    assert again.stderr.count(note) == 1
    assert note not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    with np.load(tmp_path / "out" / "samples_240x28x28x3.npz") as archive:
        assert archive["arr_0"].shape == (240, 28, 28, 3)


OTHER_INVALID_SETTINGS: list[tuple[list[str], str]] = [
    (["batch_size=many"], "batch_size must be a whole number of at least 1, got many."),
    (["guidance_scale=abc"], "guidance_scale must be a number, got abc."),
    (["cascade_steps=0"], "cascade_steps must be a whole number of at least 1, got 0."),
    (["image=-1"], "`image` must be a whole number of at least 0 or a list of such numbers, got -1."),
    (["animation=webm"], "`animation` must be false, true, webp, gif or mp4, got webm."),
    (["metrics=kid"], "metrics is a setting of `python src/evaluate.py`, which measures metrics."),
    (
        ["checkpoint='*.ckpt'", "run=/nowhere"],
        "`run` must be a run folder, a checkpoint file in it, a folder of several, a glob pattern or last, got "
        "/nowhere, which does not exist.",
    ),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_images=0"], "num_images must be a whole number of at least 1, got 0."),
        (
            ["schedule=linear"],
            "schedule is a setting of training, which `run` determines; `python src/sample.py --help` lists what can "
            "be set here.",
        ),
        (
            ["sampler.eta=1"],
            "sampler.eta is not a setting in sampler; add sampler=ddim for sampler.eta; accepted settings are "
            "num_steps.",
        ),
        (["guidance=2"], "guidance must be a group of settings, got 2; guidance_scale=2 sets the scale."),
        (["label=10"], "`label` must be null, random, in 0..9 or a list of such numbers, got 10."),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_INVALID_SETTINGS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_setting_is_rejected_with_a_message(
    trained: Path, overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = run(
        "sample.py",
        *([] if "run=/nowhere" in overrides else [f"run={trained}"]),
        *overrides,
        f"hydra.run.dir={tmp_path}/x",
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in done.stderr


def test_a_diverged_network_is_reported_with_a_message(trained: Path, tmp_path: Path) -> None:
    import torch

    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "config.yaml").write_text((trained / "config.yaml").read_text())
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    for key, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and key.startswith("ema.networks"):
            value.fill_(float("nan"))
    torch.save(checkpoint, broken / "checkpoints" / "last.ckpt")
    done = sample(broken, tmp_path / "out", "num_images=2")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: images must be finite, got NaN or infinity")


@pytest.mark.full
def test_only_comparable_numbers_are_compared(trained: Path, tmp_path: Path) -> None:
    for name, overrides in {"one": ["weights=raw"], "more": ["weights=raw", "sampler.num_steps=4"]}.items():
        done = run(
            "evaluate.py", f"run={trained}", "num_samples=20", "num_pictures=0", "batch_size=20", *overrides,
            f"hydra.run.dir={tmp_path / name}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["numbers"][0]["fingerprint"]["weights"] == {"kind": "raw"}
    folders = f"numbers=[{tmp_path / 'one'},{tmp_path / 'more'}]"
    done = run("compare.py", folders, f"hydra.run.dir={tmp_path / 'refused'}")
    assert done.returncode == 1
    assert (
        "fd_fashion_cnn_20_train cannot be compared, because the measurements differ: sampler.num_steps is 8 in"
        in done.stderr
    )
    assert "allow=[sampler]" in done.stderr
    done = run("compare.py", folders, "allow=[sampler]", f"hydra.run.dir={tmp_path / 'allowed'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "allowed" / "against_sampling_steps.png").is_file()
    done = run("compare.py", f"numbers={tmp_path / 'nothing'}", f"hydra.run.dir={tmp_path / 'none'}")
    assert done.stderr.strip() == (
        "error: `numbers` must be a folder with a metrics.json, a checkpoint file in it, a folder of several, a glob "
        f"pattern or last, got {tmp_path / 'nothing'}, which does not exist."
    )
