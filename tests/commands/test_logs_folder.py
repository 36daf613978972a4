"""The setting `logs`, and the environment variable DIFFUSION_LAB_LOGS, for all commands and their child processes."""

from pathlib import Path

import pytest

from support.commands import TINY, run, train


def test_logs_moves_the_runs_of_all_commands_and_is_searched_for_them(tmp_path: Path) -> None:
    logs = tmp_path / "my logs"
    done = train(*TINY, f"logs={logs}")
    assert done.returncode == 0, done.stderr
    (folder,) = (logs / "train").iterdir()
    resumed = train("resume=last", "trainer.max_steps=3", f"logs={logs}")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 2" in resumed.stdout
    sampled = run(
        "sample.py", f"run={folder.name}", "num_images=1", "sampler.num_steps=2", DIFFUSION_LAB_LOGS=str(logs)
    )
    assert sampled.returncode == 0, sampled.stderr
    (output,) = (logs / "sample").iterdir()
    assert (output / "samples.png").is_file()
    assert f"1 images of {folder} at step 3 are in {output}" in sampled.stdout
    file = train(f"logs={folder / 'config.yaml'}")
    assert file.stderr.endswith(f"error: `logs` must be a folder (logs=/data/logs), got {folder / 'config.yaml'}.\n")


@pytest.mark.full
def test_the_processes_of_a_sweep_write_to_the_same_logs(tmp_path: Path) -> None:
    sweep = ["-m", "hydra/launcher=local_parallel", "seed=1,2", "sweep.name=two"]
    done = train(*TINY, *sweep, f"logs={tmp_path}", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "train" / "two").glob("seed-*")) == ["seed-1", "seed-2"]
    shown = run("sweep.py", "status", "two", f"logs={tmp_path}")
    assert f"results are in {tmp_path / 'train' / 'two'}: " in shown.stdout


@pytest.mark.full
def test_a_fork_starts_from_the_checkpoint_file_that_resume_names(tmp_path: Path) -> None:
    every_step = ["callbacks.save_last.every_n_steps=1", "+callbacks.save_last.keep_every_n_steps=1"]
    done = train(*TINY, *every_step, f"logs={tmp_path}", f"hydra.run.dir={tmp_path / 'train' / 'A'}")
    assert done.returncode == 0, done.stderr
    (first, *_) = sorted((tmp_path / "train" / "A" / "checkpoints").glob("step_*.ckpt"))
    refused = train(f"resume=A/checkpoints/{first.name}", f"logs={tmp_path}")
    assert "must be last.ckpt or a run folder without fork=true" in refused.stderr
    forked = train(f"resume=A/checkpoints/{first.name}", "fork=true", "seed=7", f"logs={tmp_path}")
    assert forked.returncode == 0, forked.stderr
    assert "resuming after step 1;" in forked.stdout
