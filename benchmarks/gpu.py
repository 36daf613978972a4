"""Training steps, sampling, evaluation and a short training run on one GPU. Run it with gpu.sh.

MFU (model FLOPs utilization): floating-point operations of the forward and backward pass per second of the complete
step, as a fraction of the rate of a bfloat16 matrix product that is measured in the same run.
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
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.samplers import DDIM
from features import write_weights

SECONDS = 420
"""After this time no further measurement starts."""


class Run:
    """Device, settings and measured numbers.  dry: use a CPU and small sizes."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.started, self.numbers = dry, time.monotonic(), dict[str, float]()
        self.device = torch.device("cpu" if dry else "cuda")
        self.model, self.batch_size = ("unet_tiny", 4) if dry else ("unet_cifar10", 512)
        self.overrides = ["trainer=cpu", "trainer.precision=bf16-mixed"] if dry else ["trainer=gpu"]
        if dry:
            self.overrides += ["model.channels=8", "model.num_blocks=1", "model.attention_resolutions=[]"]

    def report(self, name: str, value: float, text: str) -> None:
        """Store a number and print it as `text`."""
        self.numbers[name] = value
        print(f"{time.monotonic() - self.started:5.0f} s  {name}: {text}", flush=True)

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, job: Callable[[], object], repeats: int) -> float:
        """Return the mean seconds of one call, after a warm-up call."""
        job()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            job()
        self.synchronize()
        return (time.perf_counter() - started) / repeats

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() - self.started > SECONDS


def matmul_peak(run: Run) -> float:
    """Return the floating-point operations per second of a large bfloat16 matrix product."""
    side = 512 if run.dry else 8192
    a, b = (torch.randn(side, side, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / run.seconds(lambda: a @ b, 20)
    run.report("matmul TFLOP/s", rate / 1e12, f"{rate / 1e12:.1f} TFLOP/s for a bfloat16 product, side {side}")
    return rate


class StepTimer(Callback):
    """Mean seconds of a step, between the end of step `first` and the end of step `last`."""

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run, self.first, self.last = run, first, last

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.first:
            self.run.synchronize()
            self.started = time.perf_counter()
        elif trainer.global_step == self.last:
            self.run.synchronize()
            self.seconds = (time.perf_counter() - self.started) / (self.last - self.first)


class CountSynchronizations(Callback):
    """Records where the host waits for the device, from step 2 on."""

    def __init__(self) -> None:
        self.warnings: list[warnings.WarningMessage] = []
        self._caught: Any = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self._caught = warnings.catch_warnings(record=True)
            self.warnings = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)


def build(run: Run, folder: Path, batch_size: int, *overrides: str) -> training_setup.Run:
    settings = [*run.overrides, f"data.batch_size={batch_size}", "trainer.log_every_n_steps=1000", *overrides]
    return training_setup.build(config(run.model, folder, *settings))


def steps(run: Run, folder: Path, peak: float) -> None:
    """Measure complete training steps through the Trainer.  peak: see `matmul_peak`."""
    write_set(folder / "images", (1, 28, 28) if run.dry else (3, 32, 32), num_images=64 if run.dry else 4096)
    network = build(run, folder, run.batch_size).module.network
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
    for name, (batch_size, overrides) in variants.items():
        if run.out_of_time:
            print(f"no time left for {name}")
            continue
        timer = StepTimer(run, first, last)
        training_run = build(run, folder, batch_size, f"trainer.max_steps={last}", *overrides)
        training_run.trainer.callbacks.append(timer)
        training_run.trainer.fit(training_run.module, datamodule=training_run.datamodule)
        rate = batch_size / timer.seconds
        mfu = operations * rate / peak
        run.report(
            f"step, {name}: images/s", rate, f"{rate:,.0f} images/s, {1000 * timer.seconds:.1f} ms, MFU {mfu:.1%}"
        )
        run.numbers[f"step, {name}: MFU"] = mfu
    if not run.dry:
        synchronizations = CountSynchronizations()
        training_run = build(run, folder, run.batch_size, "trainer.max_steps=10")
        training_run.trainer.callbacks.append(synchronizations)
        training_run.trainer.fit(training_run.module, datamodule=training_run.datamodule)
        where = {f"{Path(caught.filename).name}:{caught.lineno}" for caught in synchronizations.warnings}
        count = len(synchronizations.warnings)
        run.report("waits for the device", count, f"{count} in 8 steps: {sorted(where)}")


def sampling(run: Run) -> None:
    """Measure DDIM with 50 steps; the noise of each image comes from a separate random stream."""
    process = GaussianProcess(LinearSchedule())
    sampler = DDIM(process, 2 if run.dry else 50)
    for batch_size in (2,) if run.dry else (16, 512):
        for name in (False, "default") if run.dry else (False, "default", "reduce-overhead"):
            if run.out_of_time:
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
            run.report(f"{what}: images/s", rate, f"{rate:,.1f} images/s with {len(sampler.times)} steps")


def evaluation(run: Run, folder: Path) -> None:
    """Measure Inception's features, with random weights, and the Fréchet distance of two sets of features."""
    write_weights(folder / "random.pth")
    features, batch_size = Inception(folder / "random.pth").to(run.device), 2 if run.dry else 200
    pixels = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=run.device)
    rate = batch_size / run.seconds(lambda: features(pixels), 1 if run.dry else 10)
    run.report("features: images/s", rate, f"{rate:,.0f} images/s in float32")
    rows = [torch.rand(200 if run.dry else 5000, 128 if run.dry else 2048) + 0.1 * k for k in range(2)]
    seconds = run.seconds(lambda: frechet_distance(*(FeatureSet.of(part) for part in rows)), 1)
    run.report("statistics: seconds", seconds, f"{seconds:.2f} s for the moments and the matrix root")


def training(run: Run, folder: Path, path: str) -> None:
    """Run src/train.py for a short time and measure distances.

    path: folder of CIFAR-10, whose distance is over Inception with random weights; if empty, fashion_mini is used.
    """
    if run.dry:
        overrides = ["data=fashion_mini", "model=unet_quick", "trainer.max_steps=4", "num_samples=64"]
        overrides += ["callbacks.measure_distance.every_n_steps=2", "callbacks.measure_distance.sampler.num_steps=2"]
    elif path:
        overrides = [
            "data=cifar10",
            f"data.path={path}",
            "model=unet_cifar10",
            f"features.weights={folder / 'random.pth'}",
        ]
        overrides += ["features=inception", "trainer.max_steps=1500", "data.batch_size=256", "num_samples=2000"]
        overrides += ["callbacks.measure_distance.every_n_steps=500", "conditioning=label"]
    else:
        overrides = ["data=fashion_mini", "model=unet_tiny", "trainer.max_steps=1500", "data.batch_size=256"]
        overrides += ["callbacks.measure_distance.every_n_steps=500", "num_samples=2000"]
    off = ["callbacks.sample_images.every_n_steps=1000000", f"+trainer.max_time={{seconds: {max(60, SECONDS // 4)}}}"]
    where = f"hydra.run.dir={folder / 'training'}"
    overrides += [*off, where, f"data.cache_folder={folder / 'cache'}", *run.overrides[: 2 if run.dry else 1]]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "src/train.py", *overrides], cwd=ROOT, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    lines = (folder / "training" / "metrics.csv").read_text().splitlines()
    print("\n".join(lines))
    print(done.stdout)
    run.report("training: rows", len(lines) - 1, f"{len(lines) - 1} rows in metrics.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="", help="folder of CIFAR-10 as parquet files")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--dry", action="store_true", help="use small sizes and a CPU, to test the script")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --dry tests the script on a CPU.")
    run = Run(arguments.dry)
    name = "a CPU, small sizes" if run.dry else torch.cuda.get_device_name()
    print(f"torch {torch.__version__} on {name}; Inception has random weights")
    with tempfile.TemporaryDirectory() as folder:
        peak = matmul_peak(run)
        steps(run, Path(folder), peak)
        sampling(run)
        evaluation(run, Path(folder))
        if run.out_of_time:
            print("no time left for a training run")
        else:
            training(run, Path(folder), arguments.path)
    if not run.dry:
        memory = torch.cuda.max_memory_allocated() / 2**30
        run.report("peak memory, GB", memory, f"{memory:.1f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps(run.numbers, indent=1))


if __name__ == "__main__":
    main()
