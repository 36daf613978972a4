"""Runs that diverge: they restore a checkpoint, or end with an error."""

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.callbacks.restore_on_divergence import RestoreOnDivergence
from diffusion_lab.callbacks.stop_on_signal import StopOnSignal
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.training import ConstantWithWarmup, OptimizerFactory
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.nonfinite_guard import DivergedError, NonFiniteGuard
from support.commands import run
from support.faults import PlantedNaN, learned, same
from support.small_runs import FewImages, fit, small_module, weights


def guarded(**settings: Any) -> DiffusionModule:
    """Return a small module whose learning rate and times depend on the steps done; patience of three steps."""
    module = small_module()
    module.guard = NonFiniteGuard(patience=3, **settings)
    module.optimizer = OptimizerFactory(torch.optim.AdamW, lr=1e-2)
    module.lr_schedule = ConstantWithWarmup(num_warmup_steps=40)
    module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    return module


class CopyCheckpoint(Callback):
    """Copies the checkpoint of a step to copy.ckpt."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step + 1:
            shutil.copy(self.folder / "checkpoints" / "last.ckpt", self.folder / "copy.ckpt")


class SaveOnce(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def saving(folder: Path) -> list[Callback]:
    """Return callbacks that save after 5, 10, ... steps. The guard is checked before the next checkpoint is due."""
    return [RestoreOnDivergence(str(folder)), SaveLast(str(folder / "checkpoints"), every_n_steps=5)]


def test_restoring_a_checkpoint_has_the_same_result_as_skipping_all_steps_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = SaveOnce(tmp_path / "checkpoints" / "best.ckpt", 2)
    callbacks = [PlantedNaN([6, 7, 8]), CopyCheckpoint(tmp_path, 5), older, *saving(tmp_path)]
    restored = fit(guarded(), 18, callbacks=callbacks)
    requested = fit(guarded(skip_steps=[[5, 8]]), 18, ckpt_path=tmp_path / "copy.ckpt")
    different = ("ema.", "guard.")  # skipped steps update the average, but a restore resets it
    one, other = (
        {key: value for key, value in learned(run).items() if not key.startswith(different)}
        for run in (restored, requested)
    )
    assert same(one, other)
    assert restored.optimizers[0].param_groups[0]["lr"] == requested.optimizers[0].param_groups[0]["lr"]
    module = restored.lightning_module
    assert (int(module.guard.num_restores), int(module.guard.num_refused), int(module.guard.streak)) == (1, 3, 0)
    assert int(module.ema.num_updates) == 5 + 18 - 9
    assert (
        "the loss or the gradient was not finite in 3 consecutive steps: restored last.ckpt and skipped steps 5 to 8, "
        "which followed the checkpoint (restore 1 of 3)." in caplog.text
    )


def test_a_checkpoint_saved_during_a_streak_is_not_restored(tmp_path: Path) -> None:
    in_streak = SaveOnce(tmp_path / "checkpoints" / "best.ckpt", 11)
    fit(guarded(), 15, callbacks=[PlantedNaN([9, 10, 11]), in_streak, *saving(tmp_path)])
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert int(state["guard.num_restores"]) == 1
    assert int(state["ema._extra_state"]) == 5 + 15 - 12  # no checkpoint after 10 steps: the tenth was skipped


def test_after_max_restores_the_run_ends_with_the_last_good_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, last = tmp_path / "checkpoints" / "previous.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    save = [SaveOnce(good, 5), SaveLast(str(last.parent), every_n_steps=1000)]
    with pytest.raises(DivergedError) as error:
        fit(
            guarded(max_restores=2), 100,
            callbacks=[PlantedNaN(range(5, 100)), RestoreOnDivergence(str(tmp_path)), *save],
        )  # fmt: skip
    assert str(error.value) == (
        "training diverged: the loss or the gradient was not finite in 3 consecutive steps after guard.max_restores=2 "
        f"restores; the newest checkpoint that precedes the skipped steps is {good} (step 5); try a lower "
        "optimizer.lr, a lower trainer.gradient_clip_val or trainer.precision=32-true."
    )
    assert caplog.text.count("restored previous.ckpt") == 2
    assert "\n8,waiting for a restore," in (tmp_path / "refused_steps.csv").read_text()
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (good, last))
    trained = [key for key in before if not key.startswith("guard.")]
    assert same({key: before[key] for key in trained}, {key: after[key] for key in trained})
    assert int(after["guard.streak"]) == 0


def test_a_run_without_a_good_checkpoint_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="3 consecutive steps, and there is no checkpoint to restore; try a lower"):
        fit(guarded(), 9, callbacks=[PlantedNaN(range(9)), *saving(tmp_path)])


def test_a_run_resumed_in_another_folder_restores_the_checkpoint_that_it_resumed_from(tmp_path: Path) -> None:
    fit(guarded(), 5, callbacks=saving(tmp_path / "first"))
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    module = guarded()
    fit(module, 9, callbacks=[PlantedNaN([5, 6, 7]), *saving(tmp_path / "second")], ckpt_path=path)
    assert int(module.guard.num_restores) == 1
    first = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(weights(module.network), torch.cat([first[f"network.{n}"].flatten() for n, _ in named(module)]))


def named(module: DiffusionModule) -> list[tuple[str, Any]]:
    return list(module.network.named_parameters())


class RecordImages(Callback):
    """Records the images of each step, before a NaN is planted in them."""

    def __init__(self) -> None:
        self.of_step: dict[int, list[torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: ImageBatch, batch_idx: int) -> None:
        self.of_step.setdefault(batch.draws.step, []).append(((batch.x_0 + 1) * 127.5).round().to(torch.uint8))


def test_skipped_steps_are_listed_with_the_images_of_their_global_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = RecordImages()
    callbacks = [recorded, PlantedNaN([4]), RestoreOnDivergence(str(tmp_path))]  # step 4 spans two epochs
    fit(guarded(skip_steps=[7]), 8, callbacks=callbacks, accumulate_grad_batches=2)
    with (tmp_path / "refused_steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["reason"]) for row in rows] == [("4", "loss not finite"), ("7", "skip requested")]
    for row in rows:
        index = [int(k) for k in row["images"].split()]
        expected = torch.cat(recorded.of_step[int(row["step"])])
        assert torch.equal(FewImages().load().gather(torch.tensor(index)), expected)
    path = tmp_path / "refused_steps.csv"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"skipped optimizer steps: 4 (loss not finite); their images are listed in {path}."]


@pytest.mark.full
def test_a_diverged_run_ends_the_command_with_an_error_message(tmp_path: Path) -> None:
    small = [
        "model=unet_quick", "model.channels=8", "data.batch_size=4", "trainer.max_steps=12", "guard.patience=2",
        "guard.max_restores=0", "callbacks.save_last.every_n_steps=1000", "callbacks.measure_distance=null",
        "data.max_images=100", "callbacks.sample_images=null", "optimizer.lr=1e35", f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = run("train.py", *small)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: training diverged: the loss or the gradient was not")
    assert "Traceback" not in done.stderr
    assert "loss not finite" in (tmp_path / "refused_steps.csv").read_text()


def test_skipped_steps_are_listed_once_after_a_run_is_stopped_and_resumed(tmp_path: Path) -> None:
    class Signal(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    def trained(max_steps: int, *callbacks: Callback, **settings: Any) -> None:
        fit(guarded(skip_steps=[1, 6, 7]), max_steps, callbacks=[*callbacks, *saving(tmp_path)], **settings)

    def listed() -> list[str]:
        with (tmp_path / "refused_steps.csv").open() as file:
            return [row["step"] for row in csv.DictReader(file)]

    with pytest.raises(StoppedBySignal):
        trained(20, Signal(), StopOnSignal())  # before the guard is checked after steps 6 and 7
    assert listed() == ["1", "6", "7"]
    trained(10, ckpt_path=tmp_path / "checkpoints" / "previous.ckpt")  # repeats the steps from 5 on
    assert listed() == ["1", "6", "7"]
