"""Batches from workers with little shared memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.data import worker_memory
from diffusion_lab.data.worker_memory import received, sent

BATCHES = """
import sys
from types import SimpleNamespace
import torch
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images

class Large(ImageStore):
    def splits(self):
        return ["train"]
    def load(self, split="train"):
        pixels = torch.randint(0, 256, (48, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return Images(pixels, torch.arange(48) % 3, ("a", "b", "c"))

def batches(num_workers):
    data = ImageDataModule(Large(None, channels=3, resolution=256), batch_size=24, seed=0, num_workers=num_workers)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=0)
    return iter(data.train_dataloader())

loaded = batches(2)
for _, batch, expected in zip(range(12), loaded, batches(0)):
    assert torch.equal(batch.x_0, expected.x_0) and torch.equal(batch.label, expected.label)
    assert batch.draws.positions == expected.draws.positions
    batch.x_0.add_(1)  # flipped in place
print("equal")
"""

CAN_MOUNT = shutil.which("unshare") is not None and subprocess.run(["unshare", "-m", "true"]).returncode == 0


@pytest.mark.skipif(not CAN_MOUNT, reason="mounts a file system, which only root may do")
@pytest.mark.parametrize(
    ("options", "end"),
    [
        pytest.param("size=10m", "equal", marks=pytest.mark.full),
        pytest.param("size=64m", "equal", marks=pytest.mark.full),
        pytest.param("size=10m,ro", "data.num_workers must be 0 unless /dev/shm is", marks=pytest.mark.full),
    ],
)
def test_batches_larger_than_shared_memory_arrive_and_are_those_without_workers(options: str, end: str) -> None:
    """Five batches of 4.7 MB are under way; torch waits forever for the third one in 10 MB."""
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    command = ["unshare", "-m", "bash", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, BATCHES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert end in (done.stdout + done.stderr).strip().splitlines()[-1]


def test_large_tensors_are_shared_and_small_ones_sent_through_the_pipe() -> None:
    large, small = torch.zeros(2**20, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
    assert isinstance(sent(small), np.ndarray)
    assert sent(large) is large
    assert large.is_shared()  # type: ignore[no-untyped-call]


def test_a_tensor_that_does_not_fit_is_sent_as_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(2**20, dtype=torch.int64)
    monkeypatch.setattr(worker_memory, "RESERVED_BYTES", 2**60)
    value = sent(tensor)
    assert isinstance(value, np.ndarray)
    assert torch.equal(received(value), tensor)
    assert not tensor.is_shared()  # type: ignore[no-untyped-call]
