"""Steps, sampling, evaluation and a short training run on one GPU: see gpu.sh, which runs it.

MFU: floating-point operations of forward and backward pass over the time of the whole step, as a share of the rate of
a bfloat16 matrix product measured in the same run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from measuring import ROOT
from torch.utils.flop_counter import FlopCounterMode
from training_step import config, write_set

from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.features import Inception
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.networks import Blocks, Condition, UNet
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.runs import training_setup
from diffusion_lab.samplers import DDIM
from features import write_weights

SECONDS = 420
"""After so many nothing new begins."""


class Run:
    """What is measured where.  dry: on a CPU, in small."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.started, self.numbers = dry, time.monotonic(), dict[str, float]()
        self.device = torch.device("cpu" if dry else "cuda")
        self.model, self.batch_size = ("unet_tiny", 4) if dry else ("unet_cifar10", 512)
        self.words = ["trainer=cpu", "trainer.precision=bf16-mixed"] if dry else ["trainer=gpu"]
        if dry:
            self.words += ["model.channels=8", "model.num_blocks=1", "model.attention_resolutions=[]"]

    def tell(self, name: str, value: float, text: str) -> None:
        self.numbers[name] = value
        print(f"{time.monotonic() - self.started:5.0f} s  {name}: {text}", flush=True)

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, job: Callable[[], object], repeats: int) -> float:
        """Of one call, after one that is not counted."""
        job()
        self.wait()
        started = time.perf_counter()
        for _ in range(repeats):
            job()
        self.wait()
        return (time.perf_counter() - started) / repeats

    @property
    def late(self) -> bool:
        return time.monotonic() - self.started > SECONDS


def matmul_peak(run: Run) -> float:
    side = 512 if run.dry else 8192
    a, b = (torch.randn(side, side, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / run.seconds(lambda: a @ b, 20)
    run.tell("matmul TFLOP/s", rate / 1e12, f"{rate / 1e12:.1f} TFLOP/s of a bfloat16 product of side {side}")
    return rate


class Clock(Callback):
    """Seconds of a step, from the end of one step to the end of another."""

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run, self.first, self.last, self.syncs = run, first, last, 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.first:
            self.run.wait()
            self.started = time.perf_counter()
        elif trainer.global_step == self.last:
            self.run.wait()
            self.seconds = (time.perf_counter() - self.started) / (self.last - self.first)


class CountWaits(Callback):
    """How often the steps from 2 on wait for the device."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.waits = num_steps, list[str]()
        self._caught: Any = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self._caught = warnings.catch_warnings(record=True)
            self.waits = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)


def built(run: Run, folder: Path, batch_size: int, *words: str) -> training_setup.Run:
    return training_setup.build(
        config(run.model, folder, *run.words, f"data.batch_size={batch_size}", "trainer.log_every_n_steps=1000", *words)
    )


def steps(run: Run, folder: Path, peak: float) -> None:
    """Whole training steps through the Trainer."""
    write_set(folder / "images", (1, 28, 28) if run.dry else (3, 32, 32), num_images=64 if run.dry else 4096)
    network = built(run, folder, run.batch_size).module.network
    x = torch.randn(1, int(network.in_channels), int(network.resolution), int(network.resolution))
    with FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(1), Condition()).sum().backward()
    operations = counter.get_total_flops()
    variants: dict[str, tuple[int, list[str]]] = {
        "eager": (run.batch_size, []),
        "channels_last": (run.batch_size, ["trainer.channels_last=true"]),
        "compile": (run.batch_size, ["trainer.compile=true"]),
        "compile, channels_last": (run.batch_size, ["trainer.compile=true", "trainer.channels_last=true"]),
        "eager, batch 32": (run.batch_size // 16 or 2, []),
        "CUDA graphs, batch 32": (run.batch_size // 16 or 2, ["trainer.compile=reduce-overhead"]),
    }
    if run.dry:
        del variants["compile, channels_last"], variants["CUDA graphs, batch 32"]
    first, last = (2, 4) if run.dry else (12, 42)
    for name, (batch_size, words) in variants.items():
        if run.late:
            print(f"no time left for {name}")
            continue
        clock = Clock(run, first, last)
        part = built(run, folder, batch_size, f"trainer.max_steps={last}", *words)
        part.trainer.callbacks.append(clock)
        part.trainer.fit(part.module, datamodule=part.datamodule)
        rate = batch_size / clock.seconds
        mfu = operations * rate / peak
        run.tell(f"step, {name}: images/s", rate, f"{rate:,.0f} images/s, {1000 * clock.seconds:.1f} ms, MFU {mfu:.1%}")
        run.numbers[f"step, {name}: MFU"] = mfu
    if not run.dry:
        counting = CountWaits(num_steps=8)
        part = built(run, folder, run.batch_size, "trainer.max_steps=10")
        part.trainer.callbacks.append(counting)
        part.trainer.fit(part.module, datamodule=part.datamodule)
        where = {f"{Path(caught.filename).name}:{caught.lineno}" for caught in counting.waits}
        run.tell("waits for the device", len(counting.waits), f"{len(counting.waits)} in 8 steps: {sorted(where)}")


def sampling(run: Run) -> None:
    """DDIM with 50 steps, the noise of each image from a stream of its own."""
    process = GaussianProcess(LinearSchedule())
    sampler = DDIM(process, 2 if run.dry else 50)
    for batch_size in (2,) if run.dry else (16, 512):
        for name in (False, "default") if run.dry else (False, "default", "reduce-overhead"):
            if run.late:
                continue
            torch.manual_seed(0)
            small = {"channels": 8, "channel_multipliers": (1, 1), "num_blocks": 1, "blocks": Blocks(num_groups=8)}
            network = UNet(3, 3, resolution=32, **(small if run.dry else {})).eval().to(run.device)  # type: ignore[arg-type]
            Acceleration(compile=name)(network)
            denoiser = Denoiser(network, process, Epsilon())

            def sample(denoiser: Denoiser = denoiser, batch_size: int = batch_size) -> None:
                with torch.autocast(run.device.type, torch.bfloat16):
                    sampler.sample(denoiser, ImageNoise(range(batch_size), (3, 32, 32), run.device), Condition())

            rate = batch_size / run.seconds(sample, 1 if run.dry else 3)
            what = f"sampling, batch {batch_size}, {name or 'eager'}"
            run.tell(f"{what}: images/s", rate, f"{rate:,.1f} images/s with {len(sampler.times)} steps")


def evaluation(run: Run, folder: Path) -> None:
    """Inception's features, with random weights, and the distance of two sets of them."""
    write_weights(folder / "random.pth")
    features, batch_size = Inception(folder / "random.pth").to(run.device), 2 if run.dry else 200
    pixels = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=run.device)
    rate = batch_size / run.seconds(lambda: features(pixels), 1 if run.dry else 10)
    run.tell("features: images/s", rate, f"{rate:,.0f} images/s in float32")
    rows = [torch.rand(200 if run.dry else 5000, 128 if run.dry else 2048) + 0.1 * k for k in range(2)]
    seconds = run.seconds(lambda: frechet_distance(*(FeatureSet.of(part) for part in rows)), 1)
    run.tell("statistics: seconds", seconds, f"{seconds:.2f} s for moments and matrix root")


def training(run: Run, folder: Path, path: str) -> None:
    """A short run of src/train.py, with distances: to CIFAR-10 over Inception of random weights, or to the clothes."""
    if run.dry:
        words = ["data=fashion_mini", "model=unet_quick", "trainer.max_steps=4", "num_samples=64"]
        words += ["callbacks.measure_distance.every_n_steps=2", "callbacks.measure_distance.sampler.num_steps=2"]
    elif path:
        words = ["data=cifar10", f"data.path={path}", "model=unet_cifar10", f"features.weights={folder / 'random.pth'}"]
        words += ["features=inception", "trainer.max_steps=1500", "data.batch_size=256", "num_samples=2000"]
        words += ["callbacks.measure_distance.every_n_steps=500", "conditioning=label"]
    else:
        words = ["data=fashion_mini", "model=unet_tiny", "trainer.max_steps=1500", "data.batch_size=256"]
        words += ["callbacks.measure_distance.every_n_steps=500", "num_samples=2000"]
    off = ["callbacks.sample_images.every_n_steps=1000000", f"+trainer.max_time={{seconds: {max(60, SECONDS // 4)}}}"]
    where = f"hydra.run.dir={folder / 'training'}"
    words = [*words, *off, where, f"data.cache_folder={folder / 'cache'}", *run.words[: 2 if run.dry else 1]]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "src/train.py", *words], cwd=ROOT, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    lines = (folder / "training" / "metrics.csv").read_text().splitlines()
    print("\n".join(lines))
    print(done.stdout)
    run.tell("training: rows", len(lines) - 1, f"{len(lines) - 1} rows of numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="", help="folder of CIFAR-10 as parquet")
    parser.add_argument("--json", type=Path, help="where the numbers go too")
    parser.add_argument("--dry", action="store_true", help="everything in small, on a CPU")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("error: there is no GPU that torch can use; --dry tries the script on a CPU.")
    run = Run(arguments.dry)
    name = "a CPU, in small" if run.dry else torch.cuda.get_device_name()
    print(f"torch {torch.__version__} on {name}; no published weights: features are of random weights")
    with tempfile.TemporaryDirectory() as folder:
        peak = matmul_peak(run)
        steps(run, Path(folder), peak)
        sampling(run)
        evaluation(run, Path(folder))
        if run.late:
            print("no time left for a training run")
        else:
            training(run, Path(folder), arguments.path)
    if not run.dry:
        memory = torch.cuda.max_memory_allocated() / 2**30
        run.tell("peak memory, GB", memory, f"{memory:.1f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps(run.numbers, indent=1))


if __name__ == "__main__":
    main()
