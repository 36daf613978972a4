"""The time that Lightning and our module add to a training step, in milliseconds.

    python benchmarks/overhead.py

The network is so small that the overhead shows: a U-Net of 8 channels on 4 x 4 patches, with 16 images of 3 x 32 x 32
per step in bfloat16. It is trained through the objects that src/train.py builds, and by the same computation in a bare
loop. For the overhead of Lightning alone, its Trainer without callbacks trains a single parameter, and so does a bare
loop. Complete loops of 300 steps are measured in turns.
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
from measuring import Row, interleave, main
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training_step import SIZES, bare, ours, write_set

from diffusion_lab.commands import malloc

SMALL = (
    "model.channels=8", "model.num_blocks=1", "model.channel_multipliers=[1,1]", "model.blocks.num_groups=1",
    "model.patch_size=4", "model.attention_resolutions=[]",
)  # fmt: skip
NUM_STEPS, WARM_UP = 300, 50


class StepTimer:
    """Records the time at the end of each step and stops the loop after NUM_STEPS."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) > NUM_STEPS:
            raise peers.Stopped

    @property
    def milliseconds(self) -> float:
        """Duration of the median step."""
        ends = self.ends[WARM_UP:]
        return 1000 * statistics.median(b - a for a, b in itertools.pairwise(ends))


def milliseconds(run: Callable[[Callable[[], None]], None]) -> float:
    """Run a loop and return the duration of its median step."""
    timer = StepTimer()
    with contextlib.suppress(peers.Stopped):
        run(timer)
    return timer.milliseconds


class OneParameter(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.parameter.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), fused=True)


def lightning_alone(after_step: Callable[[], None]) -> None:
    class CallAfterStep(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            after_step()

    trainer = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=NUM_STEPS + 10, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[CallAfterStep()],
    )  # fmt: skip
    trainer.fit(OneParameter(), DataLoader([torch.zeros(1)] * (NUM_STEPS + 10), batch_size=None))  # type: ignore[arg-type]


def one_parameter_bare(after_step: Callable[[], None]) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    while True:
        with torch.autocast("cpu", torch.bfloat16):
            loss = parameter.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        after_step()


def rows(arguments: argparse.Namespace) -> list[Row]:
    malloc.keep_freed_memory()  # our commands do the same; here it applies to both loops
    SIZES["unet_tiny"].update(shape=(3, 32, 32), batch_size=16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = write_set(folder / "images", (3, 32, 32))
        jobs = {
            "ours": lambda: milliseconds(ours("unet_tiny", folder, True, *SMALL)),
            "bare": lambda: milliseconds(bare("unet_tiny", folder, pixels, True, *SMALL)),
            "lightning": lambda: milliseconds(lightning_alone),
            "one parameter, bare": lambda: milliseconds(one_parameter_bare),
        }
        taken = interleave(jobs, arguments.rounds)
    added = [a - b for a, b in zip(taken["ours"], taken["bare"], strict=True)]
    by_lightning = [a - b for a, b in zip(taken["lightning"], taken["one parameter, bare"], strict=True)]
    by_us = [a - b for a, b in zip(added, by_lightning, strict=True)]
    found = statistics.median(by_lightning)
    return [
        Row("time that our module adds to a step, Lightning excluded", "ms", by_us, [1.0], "our target", 1.0,
            note=f"Lightning's Trainer alone adds {found:.2f} ms, both add {statistics.median(added):.2f} ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)
