"""When checkpoints are saved, and what they contain."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.checkpoints import SaveLast, WholeCheckpoints
from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import PeriodicAction
from diffusion_lab.training import CosineWithWarmup
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import fit, small_module, weights


def train(module: DiffusionModule, folder: Path, max_steps: int, *callbacks: Callback, **settings: Any) -> Trainer:
    """Train and save a checkpoint every third step."""
    save = SaveLast(str(folder), every_n_steps=3, keep_every_n_steps=settings.pop("keep_every_n_steps", None))
    return fit(module, max_steps, callbacks=[*callbacks, save], plugins=[WholeCheckpoints()], **settings)


def step(path: Path) -> int:
    return int(checkpoint_files.read_run(path)["global_step"])


class AfterBatch(Callback):
    """Calls a function after batch number `batch`, counted from 1."""

    def __init__(self, batch: int, function: Any) -> None:
        self.batch, self.function = batch, function

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batch:
            self.function()


def fail() -> None:
    raise RuntimeError("lost power")


def test_the_last_two_checkpoints_are_on_disk(tmp_path: Path) -> None:
    train(small_module(), tmp_path, 8)
    assert step(tmp_path / "last.ckpt") == 8  # saved at the end
    assert step(tmp_path / "previous.ckpt") == 6
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.full), 2])
def test_keep_every_n_steps_keeps_checkpoints_under_their_step(accumulate: int, tmp_path: Path) -> None:
    train(small_module(), tmp_path, 8, keep_every_n_steps=2, accumulate_grad_batches=accumulate)
    names = [f"step_000000{number}.ckpt" for number in (2, 4, 6, 8)]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt", *names]
    assert [step(tmp_path / name) for name in names] == [2, 4, 6, 8]
    assert (step(tmp_path / "previous.ckpt"), step(tmp_path / "last.ckpt")) == (6, 8)


def test_an_interval_of_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_every_n_steps must be at least 1, or null, got 0"):
        SaveLast(str(tmp_path), every_n_steps=3, keep_every_n_steps=0)


def test_an_error_between_two_steps_saves_a_checkpoint(tmp_path: Path) -> None:
    module = small_module()
    with pytest.raises(RuntimeError, match="lost power"):
        train(module, tmp_path, 9, AfterBatch(4, fail))
    state = checkpoint_files.read_run(tmp_path / "last.ckpt")
    assert state["global_step"] == 4
    loaded = small_module()
    loaded.load_state_dict(state["state_dict"])
    assert torch.equal(weights(loaded.network), weights(module.network))


def test_an_error_within_a_step_leaves_the_previous_checkpoint_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small_module()
    update = module.ema.update

    def failing_update(network: torch.nn.Module) -> None:
        if module.global_step == 4:
            fail()
        update(network)

    monkeypatch.setattr(module.ema, "update", failing_update)
    with pytest.raises(RuntimeError, match="lost power"):
        train(module, tmp_path, 9)
    assert step(tmp_path / "last.ckpt") == 3  # network and average would be of two different steps


def test_a_run_can_resume_with_another_accumulation(tmp_path: Path) -> None:
    uninterrupted, first, resumed = (small_module() for _ in range(3))
    fit(uninterrupted, 8, accumulate_grad_batches=3)
    train(first, tmp_path, 5)
    trainer = train(resumed, tmp_path, 8, accumulate_grad_batches=3, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 8
    assert int(resumed.ema.num_updates) == 8
    # Adam normalizes even gradients that are 0 up to rounding errors: single weights may differ more.
    difference = weights(resumed.network) - weights(uninterrupted.network)
    assert float(difference.norm() / weights(uninterrupted.network).norm()) < 1e-4


def test_a_resumed_run_uses_the_learning_rate_of_its_own_optimizer(tmp_path: Path) -> None:
    train(small_module(), tmp_path, 3)
    slower = small_module(lr=1e-4)
    trainer = train(slower, tmp_path, 4, ckpt_path=tmp_path / "last.ckpt")
    assert float(trainer.callback_metrics["learning_rate"]) == 1e-4  # from the first step on
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-4
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_all_checkpoints_of_the_trainer_are_complete_files_with_checksums(tmp_path: Path) -> None:
    trainer = train(small_module(), tmp_path / "run", 2)
    trainer.save_checkpoint(tmp_path / "elsewhere" / "other.ckpt")
    assert os.listdir(tmp_path / "elsewhere") == ["other.ckpt"]
    with zipfile.ZipFile(tmp_path / "elsewhere" / "other.ckpt") as archive:
        assert archive.testzip() is None
        assert max(record.CRC for record in archive.infolist()) > 0


def test_a_fork_follows_its_own_learning_rate_schedule(tmp_path: Path) -> None:
    first, fork = small_module(), small_module()
    first.lr_schedule, fork.lr_schedule = CosineWithWarmup(0, 20), CosineWithWarmup(0, 8)
    train(first, tmp_path, 3)
    trainer = train(fork, tmp_path, 6, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * CosineWithWarmup(0, 8)(6))


class Last(PeriodicAction):
    """Fails after training."""

    def act(self, trainer: Trainer, pl_module: LightningModule, *, after_training: bool) -> None:
        fail()


def test_an_error_in_the_last_measurement_saves_no_second_checkpoint_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lost power"):
        train(small_module(), tmp_path, 4, Last(Every(99)))
    assert (step(tmp_path / "last.ckpt"), step(tmp_path / "previous.ckpt")) == (4, 3)
