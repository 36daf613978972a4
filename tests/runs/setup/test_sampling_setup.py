"""Weights and step of a checkpoint that training replaces while it is read."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab import checkpoint_files
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import load_config
from diffusion_lab.runs.setup.sampling import load_module
from diffusion_lab.runs.status import Attempt, Status
from diffusion_lab.sweeps.plan import _is_current
from support.commands import TINY, run, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(*TINY, "sampler.num_steps=3", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def being_saved(folder: Path) -> Iterator[Path]:
    """Replace last.ckpt all the time by checkpoints in which every weight is a 1024th of the step."""
    last = folder / "checkpoints" / "last.ckpt"
    original, ended = last.read_bytes(), threading.Event()
    for step in range(8):
        content = checkpoint_files.read_run(last)
        state = content["state_dict"]
        networks = [key for key in state if key.startswith(("network.", "ema.networks."))]
        content["state_dict"] = state | {key: torch.full_like(state[key], step / 1024) for key in networks}
        checkpoint_files.write(content | {"global_step": step}, folder / f"{step}.ckpt")

    def save() -> None:
        k = 0
        while not ended.wait(0.002):
            os.link(folder / f"{k % 8}.ckpt", folder / "next")
            (folder / "next").replace(last)
            k += 1

    thread = threading.Thread(target=save)
    thread.start()
    while checkpoint_files.read_run(last)["state_dict"][networks[0]].std() != 0:
        time.sleep(0.01)
    try:
        yield last
    finally:
        ended.set()
        thread.join()
        last.unlink()  # a link to one of the files
        last.write_bytes(original)


def test_the_step_is_that_of_the_weights_while_training_saves(trained: Path) -> None:
    trained_config, given = load_config(trained), OmegaConf.create({"weights": None})
    with being_saved(trained) as last:
        for _ in range(4):
            module, step = load_module(given, trained_config, Target(trained, last))
            assert {float(weight.max()) for weight in module.ema.network.parameters()} == {step / 1024}


@pytest.mark.full
def test_a_checkpoint_is_verified_and_read_as_one_file_while_training_saves(trained: Path) -> None:
    with being_saved(trained) as last:
        for k in range(16):
            content = checkpoint_files.read_run(last, mmap=bool(k % 2))
            weights = next(value for key, value in content["state_dict"].items() if key.startswith("network."))
            assert float(weights.max()) == content["global_step"] / 1024


@pytest.mark.full
def test_a_fork_starts_at_the_step_of_the_checkpoint_that_it_copied(trained: Path, tmp_path: Path) -> None:
    with being_saved(trained):
        for k in range(3):
            folder = tmp_path / f"fork{k}"
            done = train(f"resume={trained}", "fork=true", "trainer.max_steps=9", f"hydra.run.dir={folder}")
            assert done.returncode == 0, done.stderr
            content = torch.load(folder / "checkpoints" / "previous.ckpt", weights_only=True)
            printed = f"resuming after step {content['global_step']}; " if content["global_step"] else "run folder"
            assert printed in done.stdout


def test_an_evaluation_during_which_a_checkpoint_was_saved_is_out_of_date(trained: Path) -> None:
    config = OmegaConf.create({"run": str(trained), "checkpoint": "last.ckpt"})
    now, saved = time.time(), (trained / "checkpoints" / "last.ckpt").stat().st_mtime
    attempt = Attempt(saved + 1, None, "host", 1)
    status = Status(run_status.FINISHED, now + 10, starts=(attempt,))
    assert _is_current(config, status)
    assert not _is_current(config, replace(status, starts=(replace(attempt, began=saved - 1),)))


@pytest.mark.parametrize(
    ("given", "is_noted"), [(["sampler=ddim"], True), (["sampler=ddim", "sampler.num_steps=2"], False), ([], False)]
)
def test_the_sampler_of_the_run_by_name_has_its_defaults_which_a_note_says(
    given: list[str], is_noted: bool, trained: Path, tmp_path: Path
) -> None:
    done = run("sample.py", f"run={trained}", "num_images=1", *given, f"hydra.run.dir={tmp_path}/s")
    assert done.returncode == 0, done.stderr
    note = "note: sampler.num_steps is 8, the default of the chosen sampler, and 3 in the run; sampler.num_steps=3 "
    assert (note in done.stderr) is is_noted
