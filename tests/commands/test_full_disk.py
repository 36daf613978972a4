"""A command whose disk becomes full ends with one sentence and keeps what it has saved."""

import json
import resource
import time
from pathlib import Path

import pytest

from diffusion_lab import checkpoint_files
from support.commands import TINY, run, start, train

LONG = [*TINY, "trainer.max_steps=3000", "trainer.log_every_n_steps=1000"]
PICTURES = (
    "callbacks.sample_images={_target_:diffusion_lab.callbacks.SampleImages,folder:${run_folder}/samples,"
    "every_n_steps:1,num_images:64,num_frames:0}"
)
SAVING = "callbacks.save_last.every_n_steps=3"


@pytest.mark.parametrize(
    ("overrides", "written", "limit"),
    [
        pytest.param([SAVING], "checkpoints/previous.ckpt", 50_000, marks=pytest.mark.full),
        ([SAVING, "trainer.log_every_n_steps=1"], "checkpoints/previous.ckpt", 4000),
        pytest.param([PICTURES], "samples/step_0000002.png", 5000, marks=pytest.mark.full),
    ],
    ids=["checkpoint", "metrics", "pictures"],
)
def test_a_run_whose_disk_is_full_ends_with_one_sentence_and_is_resumed(
    overrides: list[str], written: str, limit: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = start("train.py", *LONG, f"hydra.run.dir={folder}", *overrides)
    wait_for(folder / written)
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (limit, limit))
    done = command.wait()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    kept = "its last checkpoint is complete" if "previous.ckpt" in written else "it has no checkpoint yet"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: run folder {folder} is no longer writable (File too large); {kept}: ")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], f"error: {status['reason']}") == ("failed", last)
    assert not list(folder.rglob("*.partial"))

    path, step = folder / "checkpoints" / "last.ckpt", 0
    if path.is_file():
        step = checkpoint_files.read_run(path)["global_step"]
        assert step % 3 == 0
        (path.parent / "previous.ckpt.partial").hardlink_to(path)  # of a process that was killed between two links
    (folder / "config.yaml.partial").write_text("half")
    done = train(f"resume={folder}", f"trainer.max_steps={step + 3}", "callbacks.sample_images=null")
    assert done.returncode == 0, done.stderr
    assert checkpoint_files.read_run(path)["global_step"] == step + 3
    assert not list(folder.rglob("*.partial"))


@pytest.mark.full
def test_samples_that_do_not_fit_on_the_disk_end_with_one_sentence(tmp_path: Path) -> None:
    assert train(*TINY, f"hydra.run.dir={tmp_path / 'run'}").returncode == 0
    folder = tmp_path / "samples"
    arguments = [f"run={tmp_path / 'run'}", "num_images=64", f"hydra.run.dir={folder}"]
    command = start("sample.py", *arguments)
    wait_for(folder / "status.json")
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (3000, 3000))
    done = command.wait()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.endswith("); free space or make it writable, then start the same command again.")
    assert not (folder / "samples.png").exists()
    assert run("sample.py", *arguments).returncode == 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.02)
