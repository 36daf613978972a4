"""What Lightning and our module add to a step, in milliseconds: on a network so small that it shows.

    python benchmarks/overhead.py

A U-Net of 8 channels on 4 x 4 patches, 16 images of 3 x 32 x 32 a step, bfloat16: through src/train.py's objects, and
the same mathematics in a bare loop. Beside them, Lightning's Trainer around one number that learns, without any
callback, and that number in a bare loop: what Lightning costs by itself. Whole loops of 300 steps take turns.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from lightning import Callback, LightningModule, Trainer
from measuring import Row, in_turns, main
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training_step import SIZES, bare, ours, write_set

from diffusion_lab.commands import malloc

SMALL = (
    "model.channels=8", "model.num_blocks=1", "model.channel_multipliers=[1,1]", "model.blocks.num_groups=1",
    "model.patch_size=4", "model.attention_resolutions=[]",
)  # fmt: skip
NUM_STEPS, WARM_UP = 300, 50


class Clock:
    """Told of the end of each step, ends the loop after NUM_STEPS."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) > NUM_STEPS:
            raise peers.Stopped

    @property
    def milliseconds(self) -> float:
        """Of the median step."""
        ends = self.ends[WARM_UP:]
        return 1000 * statistics.median(b - a for a, b in itertools.pairwise(ends))


def of(run: Callable[[Callable[[], None]], None]) -> float:
    clock = Clock()
    with contextlib.suppress(peers.Stopped):
        run(clock)
    return clock.milliseconds


class OneNumber(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.number.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), fused=True)


def lightning_alone(after_step: Callable[[], None]) -> None:
    class Tell(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            after_step()

    trainer = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=NUM_STEPS + 10, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Tell()],
    )  # fmt: skip
    trainer.fit(OneNumber(), DataLoader([torch.zeros(1)] * (NUM_STEPS + 10), batch_size=None))  # type: ignore[arg-type]


def nothing(after_step: Callable[[], None]) -> None:
    number = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([number], fused=True)
    while True:
        with torch.autocast("cpu", torch.bfloat16):
            loss = number.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        after_step()


def rows(arguments: argparse.Namespace) -> list[Row]:
    malloc.keep_freed()  # as our commands do, for both loops
    SIZES["unet_tiny"].update(shape=(3, 32, 32), batch_size=16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = write_set(folder / "images", (3, 32, 32))
        jobs = {
            "ours": lambda: of(ours("unet_tiny", folder, True, *SMALL)),
            "bare": lambda: of(bare("unet_tiny", folder, pixels, True, *SMALL)),
            "lightning": lambda: of(lightning_alone),
            "nothing": lambda: of(nothing),
        }
        taken = in_turns(jobs, arguments.rounds)
    added = [a - b for a, b in zip(taken["ours"], taken["bare"], strict=True)]
    by_lightning = [a - b for a, b in zip(taken["lightning"], taken["nothing"], strict=True)]
    by_us = [a - b for a, b in zip(added, by_lightning, strict=True)]
    found = statistics.median(by_lightning)
    return [
        Row("what our step adds to Lightning's and a bare loop's", "ms", by_us, [1.0], "what we ask for", 1.0,
            note=f"Lightning's Trainer alone adds {found:.2f} ms, together {statistics.median(added):.2f} ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)
