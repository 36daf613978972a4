"""Small runs in processes of their own, that can be killed at any moment and resumed."""

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.checkpoints import SaveLast, WholeCheckpoints
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.networks import Labels
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.training.loggers import MetricsFile
from support.small_runs import FewImages, small_module

NUM_STEPS = 14


class NumberOfImages(FewImages):
    """The first images of FewImages: 48 of them make epochs of exactly four steps of 12."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def load(self, split: str = "train") -> Images:
        return super().load(split).select(torch.arange(self.size))


@dataclass(frozen=True)
class Layout:
    """How a run is cut: none of it may change what it comes to."""

    size: int = 50
    num_workers: int = 0
    accumulate: int = 1
    num_processes: int = 1


@dataclass(frozen=True)
class Recipe:
    """What a run does. Dropout is drawn for each batch, so that it alone changes with the layout."""

    num_steps: int = NUM_STEPS
    dropout: float = 0.1
    precision: str = "32-true"
    lr: float = 1e-2


def train(folder: Path, layout: Layout, *, recipe: Recipe = Recipe(), die_in_write: int | None = None) -> None:
    """Trains from the newest checkpoint in `folder`, logging each step.

    die_in_write: the process kills itself in the middle of writing its n-th checkpoint, counted from 0.
    """
    torch.set_num_threads(1)
    if die_in_write is not None:
        _die_in_write(die_in_write)
    path = checkpoint_files.newest(folder)
    logger = MetricsFile(str(folder))
    logger.continue_after(0 if path is None else checkpoint_files.read(path)["global_step"])
    module = small_module(Labels(3, dropout=0.2), dropout=recipe.dropout, lr=recipe.lr)
    module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    store = NumberOfImages(layout.size)
    datamodule = ImageDataModule(store, batch_size=12, seed=3, horizontal_flip=True, num_workers=layout.num_workers)
    options: dict[str, Any] = {"strategy": "ddp_fork"} if layout.num_processes > 1 else {}
    trainer = Trainer(
        max_steps=recipe.num_steps, precision=recipe.precision, accumulate_grad_batches=layout.accumulate,
        callbacks=[SaveLast(str(folder), every_n_steps=3)], logger=logger, log_every_n_steps=1,
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


def _in_own_group(folder: Path, layout: Layout, arguments: dict[str, Any], ready: Any) -> None:
    os.setpgid(0, 0)  # so that a kill reaches the processes that this one starts
    ready.set()
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    train(folder, layout, **arguments)


def run(folder: Path, layout: Layout, *, kill_after: float | None = None, **arguments: Any) -> bool:
    """Trains in a process of its own, killed after so many seconds; whether it came to its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_lab.callbacks.checkpoints", "diffusion_lab.training.loggers"])
    ready = context.Event()
    process = context.Process(target=_in_own_group, args=(folder, layout, arguments, ready))
    process.start()
    ready.wait()
    process.join(kill_after)
    with contextlib.suppress(ProcessLookupError):  # where one of its processes died, the others may still wait for it
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    return process.exitcode == 0


def outcome(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The numbers of every step, as written, and the state at the end."""
    return (folder / "metrics.csv").read_text().splitlines(), checkpoint_files.read(folder / "last.ckpt")
