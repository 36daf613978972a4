"""When checkpoints are written, and what they are."""

import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.checkpoints import SaveLast, WholeCheckpoints
from diffusion_lab.callbacks.stop_on_signal import StopOnSignal
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.training import CosineWithWarmup
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import fit, small_module, weights


def saved(module: DiffusionModule, folder: Path, max_steps: int, *callbacks: Callback, **settings: Any) -> Trainer:
    """Trains, saving every third step."""
    chosen = [*callbacks, SaveLast(str(folder), every_n_steps=3, keep_every_n_steps=settings.pop("keep", None))]
    return fit(module, max_steps, callbacks=chosen, plugins=[WholeCheckpoints()], **settings)


def step(path: Path) -> int:
    return int(checkpoint_files.read_run(path)["global_step"])


class After(Callback):
    """Does something when batch number `batch`, counted from 1, has been trained on."""

    def __init__(self, batch: int, act: Any) -> None:
        self.batch, self.act = batch, act

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batch:
            self.act()


def fail() -> None:
    raise RuntimeError("lost power")


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    saved(small_module(), tmp_path, 8)
    assert step(tmp_path / "last.ckpt") == 8  # written at the end
    assert step(tmp_path / "previous.ckpt") == 6
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_checkpoints_that_are_asked_for_stay(accumulate: int, tmp_path: Path) -> None:
    saved(small_module(), tmp_path, 8, keep=2, accumulate_grad_batches=accumulate)
    names = [f"step_000000{number}.ckpt" for number in (2, 4, 6, 8)]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt", *names]
    assert [step(tmp_path / name) for name in names] == [2, 4, 6, 8]
    assert (step(tmp_path / "previous.ckpt"), step(tmp_path / "last.ckpt")) == (6, 8)


def test_an_interval_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_every_n_steps must be at least 1, or null, got 0"):
        SaveLast(str(tmp_path), every_n_steps=3, keep_every_n_steps=0)


def test_what_was_trained_before_an_error_is_kept(tmp_path: Path) -> None:
    module = small_module()
    with pytest.raises(RuntimeError, match="lost power"):
        saved(module, tmp_path, 9, After(4, fail))
    state = checkpoint_files.read_run(tmp_path / "last.ckpt")
    assert state["global_step"] == 4
    kept = small_module()
    kept.load_state_dict(state["state_dict"])
    assert torch.equal(weights(kept.network), weights(module.network))


def test_an_error_in_the_middle_of_a_step_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small_module()
    advance = module.ema.update

    def torn(network: torch.nn.Module) -> None:
        if module.global_step == 4:
            fail()
        advance(network)

    monkeypatch.setattr(module.ema, "update", torn)
    with pytest.raises(RuntimeError, match="lost power"):
        saved(module, tmp_path, 9)
    assert step(tmp_path / "last.ckpt") == 3  # network and average would be of two different steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_all_of_it_kept(tmp_path: Path, number: int) -> None:
    module, handlers = small_module(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    in_the_fifth_step = After(9, lambda: os.kill(os.getpid(), number))  # one of its two batches is done
    with pytest.raises(StoppedBySignal, match="after step 5") as stop:
        saved(module, tmp_path, 9, in_the_fifth_step, StopOnSignal(), accumulate_grad_batches=2)
    assert (stop.value.step, stop.value.number) == (5, number)
    assert step(tmp_path / "last.ckpt") == 5
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        saved(small_module(), tmp_path, 9, After(4, twice), StopOnSignal())
    assert step(tmp_path / "last.ckpt") == 4


def test_a_run_goes_on_with_another_accumulation(tmp_path: Path) -> None:
    whole, first, resumed = (small_module() for _ in range(3))
    fit(whole, 8, accumulate_grad_batches=3)
    saved(first, tmp_path, 5)
    trainer = saved(resumed, tmp_path, 8, accumulate_grad_batches=3, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 8
    assert int(resumed.ema.num_updates) == 8
    # Adam makes a whole step of a gradient that is 0 but for rounding: single weights may be further off.
    difference = weights(resumed.network) - weights(whole.network)
    assert float(difference.norm() / weights(whole.network).norm()) < 1e-4


def test_a_run_goes_on_at_the_rates_of_its_optimizer(tmp_path: Path) -> None:
    saved(small_module(), tmp_path, 3)
    slower = small_module(lr=1e-4)
    trainer = saved(slower, tmp_path, 4, ckpt_path=tmp_path / "last.ckpt")
    assert float(trainer.callback_metrics["learning_rate"]) == 1e-4  # of the very first step
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-4
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_every_checkpoint_of_the_trainer_has_checksums_and_no_half_written_file(tmp_path: Path) -> None:
    trainer = saved(small_module(), tmp_path / "run", 2)
    trainer.save_checkpoint(tmp_path / "elsewhere" / "other.ckpt")
    assert os.listdir(tmp_path / "elsewhere") == ["other.ckpt"]
    with zipfile.ZipFile(tmp_path / "elsewhere" / "other.ckpt") as archive:
        assert archive.testzip() is None
        assert max(record.CRC for record in archive.infolist()) > 0


def test_a_fork_follows_its_own_learning_rate_schedule(tmp_path: Path) -> None:
    first, fork = small_module(), small_module()
    first.lr_schedule, fork.lr_schedule = CosineWithWarmup(0, 20), CosineWithWarmup(0, 8)
    saved(first, tmp_path, 3)
    trainer = saved(fork, tmp_path, 6, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * CosineWithWarmup(0, 8)(6))
