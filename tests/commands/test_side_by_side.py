"""Several commands at the same time on one run: nothing is lost, and nothing is mixed."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.commands import TINY, Command, run, start, table, train

TRAINING = [*TINY, "conditioning=label", "data.max_images=300", "trainer.log_every_n_steps=2"]
TRAINING += ["callbacks.save_last.every_n_steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(*TRAINING, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition was not met in time"
        time.sleep(0.01)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def batches(work: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in work.glob("*/*.npy")}


def sampling(trained: Path, folder: Path, *overrides: str) -> list[str]:
    own = [f"work_folder={folder.parent / 'work'}", f"hydra.run.dir={folder}"]
    return [f"run={trained}", "sampler.num_steps=4", *own, *overrides]


def require_nothing_mixed(folder: Path, evaluations: list[Path], samples: list[Path], num_steps: int) -> None:
    """Check the results of commands that worked at the same time."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == num_steps
    assert [row["step"] for row in table(folder / "metrics.csv")] == [str(k) for k in range(2, num_steps + 1, 2)]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    for evaluation in evaluations:
        record = json.loads((evaluation / "metrics.json").read_text())
        assert 2 <= record["step"] <= num_steps
        assert np.isfinite(record["numbers"][0]["value"])
    for sample in samples:
        record = json.loads((sample / "images.json").read_text())
        assert [[int(name[:-4]) for name in sorted(pictures(sample))]] == [list(range(*record["seeds"][0]))]
        archive = np.load(next(sample.glob("*.npz")))["arr_0"]
        for seed, image in enumerate(archive):
            with Image.open(sample / "images" / f"{seed:06}.png") as picture:
                assert np.array_equal(np.asarray(picture), image[:, :, 0])


def run_at_once(trained: Path, tmp_path: Path, num_commands: int, max_steps: int = 12) -> None:
    """Resume a run twice, with evaluations and samples beside it."""
    folder = shutil.copytree(trained, tmp_path / "run")
    measuring = ["num_samples=40", "batch_size=20", "num_pictures=0"]
    names = ["resume", "sample", "resume", "evaluate", "evaluate"][:num_commands]
    commands = list[Command]()
    for number, name in enumerate(names):
        out = tmp_path / f"{name}{number}"
        if name == "resume":
            commands.append(start("train.py", f"resume={folder}", f"trainer.max_steps={max_steps}"))
        elif name == "sample":
            commands.append(start("sample.py", *sampling(folder, out, "num_images=24", "save_npz=true")))
        else:
            commands.append(start("evaluate.py", *sampling(folder, out, *measuring)))
    ended = [command.wait() for command in commands]
    for name, command in zip(names, ended, strict=True):
        assert command.returncode == 0 or name == "resume", command.stderr
        assert "Traceback" not in command.stderr
    resumed = [command for name, command in zip(names, ended, strict=True) if name == "resume"]
    assert any(command.returncode == 0 for command in resumed)
    for command in resumed:  # one trains; the other is refused, or finds the complete run
        refused = "is in use by" in command.stderr
        assert (command.returncode == 1) == refused, command.stderr
    found = {name: [tmp_path / f"{name}{k}" for k, other in enumerate(names) if other == name] for name in names}
    require_nothing_mixed(folder, found.get("evaluate", []), found.get("sample", []), max_steps)
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("num_commands", [2, pytest.param(5, marks=pytest.mark.full)])
def test_commands_on_one_run_at_the_same_time_lose_and_mix_nothing(
    trained: Path, tmp_path: Path, num_commands: int
) -> None:
    run_at_once(trained, tmp_path, num_commands)


@pytest.mark.full
@pytest.mark.parametrize("attempt", range(20))
@pytest.mark.parametrize("num_commands", [2, 5])
def test_commands_on_one_run_at_the_same_time_lose_and_mix_nothing_20_times(
    trained: Path, tmp_path: Path, num_commands: int, attempt: int
) -> None:
    run_at_once(trained, tmp_path, num_commands, max_steps=6 + 2 * attempt)


@pytest.mark.full
def test_the_batches_of_an_interrupted_job_remain_when_a_shorter_job_ends(trained: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    long = sampling(trained, tmp_path / "long", "num_images=240", "save_png=false", "sampler.num_steps=8")
    job = start("sample.py", *long)
    wait_for(lambda: len(batches(work)) >= 5)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait().returncode == -signal.SIGKILL
    finished = batches(work)
    short = [f"run={trained}", "sampler.num_steps=8", f"work_folder={work}", "num_images=48", "save_png=false"]
    for folder in ("short", "other"):
        done = run("sample.py", *short, f"hydra.run.dir={tmp_path / folder}")
        assert done.returncode == 0, done.stderr
        assert "48 images were generated before an interruption and are reused." in done.stderr
    assert batches(work) == finished
    assert run("sample.py", *long).returncode == 0
    assert not list(work.iterdir())


@pytest.mark.full
def test_the_batches_of_a_running_job_remain_when_a_shorter_job_ends(trained: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    many = ["num_images=160", "save_png=false", "sampler.num_steps=8"]
    job = start("sample.py", *sampling(trained, tmp_path / "long", *many))
    wait_for(lambda: len(batches(work)) >= 3)
    os.kill(job.pid, signal.SIGSTOP)
    try:
        finished = batches(work)
        done = run("sample.py", *sampling(trained, tmp_path / "short", *many[1:], "num_images=32"))
        assert done.returncode == 0, done.stderr
        assert batches(work) == finished
    finally:
        os.kill(job.pid, signal.SIGCONT)
    assert job.wait().returncode == 0
    assert not list(work.iterdir())


@pytest.mark.full
def test_a_folder_with_images_of_another_run_or_other_seeds_is_refused(trained: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", shutil.copytree(trained, tmp_path / "other")
    assert run("sample.py", *sampling(trained, out, "num_images=4", "save_npz=true")).returncode == 0
    files = {path: path.read_bytes() for path in (*out.glob("images/*"), *out.glob("samples*"))}
    for changed in (
        sampling(other, out, "num_images=4"),
        sampling(trained, out, "num_images=4", "seed=2"),
        sampling(trained, out, "num_images=4", "label=3"),
        [*sampling(other, tmp_path / "elsewhere", "num_images=4"), f"output_folder={out}"],
        ["--evaluate", *sampling(other, out, "num_samples=4", "save_png=true")],
    ):
        script = "evaluate.py" if changed[0] == "--evaluate" else "sample.py"
        done = run(script, *(word for word in changed if word != "--evaluate"))
        assert done.returncode == 1
        assert f"got {out}, which contains images of {trained}, last.ckpt at step 2, seeds 0 to 3" in done.stderr
        assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in (*out.glob("images/*"), *out.glob("samples*"))} == files


def test_a_folder_with_images_of_unknown_origin_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "holiday.png").write_bytes(b"a picture")
    done = run("sample.py", *sampling(trained, tmp_path / "out", "num_images=2"))
    assert done.returncode == 1
    assert "which contains images/holiday.png and has no images.json that names its images" in done.stderr
    assert (tmp_path / "out" / "images" / "holiday.png").read_bytes() == b"a picture"


def test_the_same_command_with_more_images_replaces_the_files_that_it_wrote(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("sample.py", *sampling(trained, out, "num_images=2", "save_npz=true")).returncode == 0
    first = pictures(out)
    assert run("sample.py", *sampling(trained, out, "num_images=4")).returncode == 0
    assert not list(out.glob("*.npz"))
    assert len(pictures(out)) == 4
    assert {name: pictures(out)[name] for name in first} == first


def test_two_commands_do_not_write_to_one_output_folder_at_the_same_time(trained: Path, tmp_path: Path) -> None:
    out = f"output_folder={tmp_path / 'out'}"
    slow = start("sample.py", *sampling(trained, tmp_path / "slow", "num_images=160", "save_png=false", out))
    wait_for(lambda: (tmp_path / "out" / "images.json").exists())
    os.kill(slow.pid, signal.SIGSTOP)
    try:
        done = run("sample.py", *sampling(trained, tmp_path / "fast", "num_images=160", "save_png=false", out))
    finally:
        os.kill(slow.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert f"error: output_folder: {tmp_path / 'out'} is in use by another process" in done.stderr
    assert slow.wait().returncode == 0
