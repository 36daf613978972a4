"""Small runs in separate processes that can be killed at any time and resumed."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks import StopOnSignal
from diffusion_lab.callbacks.checkpoints import SaveLast, WholeCheckpoints
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.distributed.signals import StoppedBySignal, raise_on_signal
from diffusion_lab.files.atomic import remove_leftovers, write_error
from diffusion_lab.networks import Labels
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.training.loggers import MetricsFile
from support.processes import forked_processes
from support.small_runs import FewImages, small_module

NUM_STEPS = 14


class FirstImages(FewImages):
    """The first images of FewImages. 48 images give epochs of exactly four steps of 12."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def load(self, split: str = "train") -> Images:
        return super().load(split).select(torch.arange(self.size))


@dataclass(frozen=True)
class Layout:
    """How a run is distributed, which must not change its result."""

    size: int = 50
    num_workers: int = 0
    accumulate: int = 1
    num_processes: int = 1


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Dropout depends on the batch and therefore on the layout, unlike all other randomness."""

    num_steps: int = NUM_STEPS
    dropout: float = 0.1
    precision: str = "32-true"
    lr: float = 1e-2


def train(
    folder: Path,
    layout: Layout,
    *,
    recipe: Recipe = Recipe(),
    die_in_write: int | None = None,
    full_disk_in_write: int | None = None,
) -> None:
    """Train from the newest checkpoint in `folder` and log each step.

    die_in_write: index, from 0, of the checkpoint during whose write the process kills itself.
    full_disk_in_write: index of the checkpoint after whose first bytes the disk is full.
    """
    torch.set_num_threads(1)
    if die_in_write is not None:
        _die_in_write(die_in_write)
    if full_disk_in_write is not None:
        _fill_disk_in_write(full_disk_in_write)
    remove_leftovers(folder)
    path = checkpoint_files.newest(folder)
    logger = MetricsFile(str(folder))
    logger.continue_after(0 if path is None else checkpoint_files.read(path)["global_step"])
    module = small_module(Labels(3, dropout=0.2), dropout=recipe.dropout, lr=recipe.lr)
    module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    store = FirstImages(layout.size)
    datamodule = ImageDataModule(store, batch_size=12, seed=3, horizontal_flip=True, num_workers=layout.num_workers)
    options: dict[str, Any] = {"strategy": "ddp_fork"} if layout.num_processes > 1 else {}
    trainer = Trainer(
        max_steps=recipe.num_steps, precision=recipe.precision, accumulate_grad_batches=layout.accumulate,
        callbacks=[SaveLast(str(folder), every_n_steps=3), StopOnSignal()], logger=logger, log_every_n_steps=1,
        accelerator="cpu", devices=layout.num_processes, max_epochs=-1, gradient_clip_val=1.0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        plugins=[WholeCheckpoints()], **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=datamodule, ckpt_path=path)


def _die_in_write(number: int) -> None:
    save, written = torch.save, 0

    def save_half(content: Any, file: Any) -> None:
        nonlocal written
        if written == number:
            file.write(b"half of a file")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        save(content, file)

    torch.save = save_half  # type: ignore[assignment]


def _fill_disk_in_write(number: int) -> None:
    """Let every file end at a third of its size from a checkpoint on, as it does on a full disk."""
    save, written = torch.save, 0

    def save_on_full_disk(content: Any, file: Any) -> None:
        nonlocal written
        if written == number:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        written += 1
        save(content, file)

    torch.save = save_on_full_disk  # type: ignore[assignment]


def _in_own_group(folder: Path, layout: Layout, arguments: dict[str, Any], ready: Any) -> None:
    os.setpgid(0, 0)  # a kill of the group includes the child processes
    multiprocessing.set_start_method("fork", force=True)  # for data loading workers, as in a command
    ready.set()
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with raise_on_signal(lambda number: None):
            train(folder, layout, **arguments)
    except StoppedBySignal as stop:
        sys.exit(128 + stop.number)
    except Exception as error:
        full = write_error(error)
        if full is None or arguments.get("full_disk_in_write") is None:
            raise
        sys.exit(full.errno)


def run(
    folder: Path,
    layout: Layout,
    *,
    kill_after: float | None = None,
    hang_up_after: float | None = None,
    **arguments: Any,
) -> bool:
    """Train in a separate process, kill it after kill_after seconds, and return whether it finished.

    hang_up_after: seconds after which all processes receive SIGHUP, as if the terminal was closed.
    """
    context = forked_processes()
    ready = context.Event()
    process = context.Process(target=_in_own_group, args=(folder, layout, arguments, ready))
    process.start()
    ready.wait()
    if hang_up_after is not None:
        process.join(hang_up_after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGHUP)  # type: ignore[arg-type]
    process.join(kill_after)
    with contextlib.suppress(ProcessLookupError):  # ranks may still wait for a rank that died
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    return process.exitcode == 0


def outcome(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the logged numbers of every step and the final checkpoint."""
    return (folder / "metrics.csv").read_text().splitlines(), checkpoint_files.read(folder / "last.ckpt")
