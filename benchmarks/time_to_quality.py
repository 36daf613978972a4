"""Distance to Fashion-MNIST against minutes of training, compared with diffusers and denoising-diffusion-pytorch.

    python benchmarks/time_to_quality.py train ours_default --path FASHION_MNIST --folder WORK    # ten minutes
    python benchmarks/time_to_quality.py measure ours_default --path FASHION_MNIST --folder WORK
    python benchmarks/time_to_quality.py report --folder WORK     # prints the table, draws docs/time_to_quality.png

All networks are trained without labels. Snapshots of the EMA weights are saved at some minutes and measured afterwards
in the same way: 5000 samples by DDIM with 10 evenly spaced steps, estimates clipped to [-1, 1], bfloat16; the distance
is `fd_fashion_cnn_5k` to the 60,000 training images. Our time starts with the command and includes imports; that of the
peers starts with their first step. The peers' default networks downsample more than twice, so they are trained on 32 x
32 images: the 28 x 28 images with a black border.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import peers
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from matplotlib import pyplot
from torch import Tensor, nn

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.features import FashionCNN
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.process import CustomSchedule, Epsilon, GaussianProcess, LinearSchedule, Prediction, V
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.runs.load import load_config
from diffusion_lab.samplers import DDIM

ROOT = Path(__file__).parents[1]
MINUTES = (1, 2, 3, 4, 5, 6, 8, 10)
NUM_SAMPLES, BATCH_SIZE, NUM_STEPS = 5000, 100, 10
TICKS = (3, 4, 6, 8, 10, 15, 20, 30, 40, 60)


@dataclass(frozen=True)
class Peer:
    """A training loop of another library.

    size: default, the library's network; unet_tiny, a network like ours.  added: use bfloat16 and Adam's fused kernel.
    """

    library: str
    size: str = "default"
    added: bool = False

    @property
    def side(self) -> int:
        return 32 if self.size == "default" else 28

    @property
    def batch_size(self) -> int:
        return 16 if self.size == "default" else 64


PEERS = {
    f"{library}_{size}{'_added' if added else ''}": Peer(library, size, added)
    for library in ("diffusers", "lucidrains")
    for size in ("default", "unet_tiny")
    for added in (False, True)
}
OURS = {
    "ours_default": ["experiment=quickstart", "model=unet_quick", "trainer.max_steps=5200"],
    "ours_unet_tiny": ["experiment=quickstart", "model=unet_tiny", "trainer.max_steps=1400", "optimizer.lr=0.002"],
}


def images(path: Path, cache: Path) -> Images:
    return ImageStore(None, path, channels=1, resolution=28, fit="pad", cache_folder=cache).load()


def train_ours(name: str, path: Path, folder: Path, overrides: list[str]) -> None:
    """Run our command and save snapshots of its checkpoints, dated by the files' modification times."""
    run = folder / name
    command = [
        sys.executable, str(ROOT / "src" / "train.py"), *OURS[name], "data=fashion_mnist", f"data.path={path}",
        "data.batch_size=64", "data.num_held_out=0", f"data.cache_folder={folder / 'cache'}", "conditioning=none",
        "guidance_scale=1", "callbacks.sample_images=null", "callbacks.measure_distance=null",
        "callbacks.save_last.every_n_steps=100", "callbacks.save_last.keep_every_n_steps=100",
        f"hydra.run.dir={run}", *overrides,
    ]  # fmt: skip
    started = time.time()
    subprocess.run(command, check=True)
    files = sorted((run / "checkpoints").glob("step_*.ckpt"), key=lambda file: file.stat().st_mtime)
    minutes = {file.name: (file.stat().st_mtime - started) / 60 for file in files}
    wanted = {min(minutes, key=lambda file: abs(minutes[file] - minute)) for minute in MINUTES}
    for file in files:
        if file.name in wanted:
            state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
            save_snapshot(folder, name, minutes[file.name], int(file.stem.split("_")[1]), ema_weights(state))
        file.unlink()


def ema_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the EMA weights in the state_dict of our module, under the names of the network's parameters."""
    networks = "ema.networks."
    name = next(key for key in state if key.startswith(networks)).removeprefix(networks).split(".")[0]
    prefix = f"{networks}{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def train_peer(name: str, path: Path, folder: Path, minutes: float) -> None:
    """Run a peer's training loop and save snapshots of its EMA weights."""
    peer = PEERS[name]
    torch.manual_seed(0)
    pixels = images(path, folder / "cache").gather(torch.arange(60_000))
    pixels = F.pad(pixels, [(peer.side - 28) // 2] * 4)
    loop: peers.DiffusersLoop | peers.LucidrainsLoop
    if peer.library == "diffusers":
        network = peers.diffusers_network(peer.size, side=peer.side)
        loop = peers.DiffusersLoop(network, pixels, batch_size=peer.batch_size, bf16=peer.added, fused=peer.added)
    else:
        image_folder = folder / f"images_{peer.side}"
        if not image_folder.exists():
            peers.write_images(pixels, image_folder)
        loop = peers.LucidrainsLoop(
            peers.lucidrains_network(peer.size), image_folder, side=peer.side, batch_size=peer.batch_size,
            bf16=peer.added, fused=peer.added, results=folder / name,
        )  # fmt: skip
    due = [minute for minute in MINUTES if minute <= minutes] or [minutes]
    started, step, saving = time.monotonic(), 0, 0.0

    def after_step() -> None:
        nonlocal step, saving
        step += 1
        now = time.monotonic()
        if now - started - saving >= 60 * due[0]:
            save_snapshot(folder, name, (now - started - saving) / 60, step, loop.ema_weights())
            due.pop(0)
            saving += time.monotonic() - now  # saving a snapshot does not count as training time
            if not due:
                raise peers.Stopped

    loop.run(after_step)


def save_snapshot(folder: Path, name: str, minutes: float, step: int, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / f"{name}-{step:06}.pt")
    with (folder / "snapshots.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "step": step, "minutes": round(minutes, 3)}) + "\n")
    print(f"{name}: snapshot of step {step} at {minutes:.2f} minutes", flush=True)


class PeerNetwork(nn.Module):
    """A peer's network with the signature of our networks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        output = self.network(x_t, time)
        return output if isinstance(output, Tensor) else output.sample  # type: ignore[no-any-return]


def denoiser(name: str, weights: dict[str, Tensor], folder: Path) -> tuple[Denoiser, int]:
    """Return the denoiser of a snapshot, with its own process and prediction, and the side of its images."""
    prediction: Prediction
    if name in OURS:
        config = load_config(folder / name)
        network = instantiate(config.model, _convert_="all")
        network.load_state_dict(weights)
        process, prediction = instantiate(config.process, _convert_="all"), instantiate(config.prediction)
        return Denoiser(network.eval(), process, prediction), 28
    peer = PEERS[name]
    if peer.library == "diffusers":
        network, prediction, schedule = peers.diffusers_network(peer.size, side=peer.side), Epsilon(), LinearSchedule()
    else:
        from denoising_diffusion_pytorch import GaussianDiffusion

        network, prediction = peers.lucidrains_network(peer.size), V()
        diffusion = GaussianDiffusion(network, image_size=peer.side)
        schedule = CustomSchedule(diffusion.betas.double().tolist())
    network.load_state_dict(weights)
    return Denoiser(PeerNetwork(network).eval(), GaussianProcess(schedule), prediction), peer.side


@torch.no_grad()
def samples(denoiser: Denoiser, side: int, num_samples: int) -> Tensor:
    """Return generated images, uint8 [num_samples, 1, side, side]."""
    sampler = DDIM(denoiser.process, NUM_STEPS)
    batches = []
    for start in range(0, num_samples, BATCH_SIZE):
        noise = ImageNoise(range(start, start + BATCH_SIZE), (1, side, side))
        with torch.autocast("cpu", torch.bfloat16):
            batches.append(to_uint8(sampler.sample(denoiser, noise, Condition())))
    return torch.cat(batches)


def feature_set(pixels: Tensor, features: FashionCNN) -> FeatureSet:
    return FeatureSet.of(torch.cat([features(part)["pooled"] for part in pixels.split(100)]))


def measure(name: str, path: Path, folder: Path, only: list[float], num_samples: int) -> None:
    """Measure the distance of each snapshot and append it to distances.jsonl.  only: measure at these minutes."""
    features = FashionCNN()
    reference = feature_set(images(path, folder / "cache").gather(torch.arange(60_000)), features)
    lines = [json.loads(line) for line in (folder / "snapshots.jsonl").read_text().splitlines()]
    for line in lines:
        if line["name"] != name or (only and not any(abs(line["minutes"] - minute) < 0.4 for minute in only)):
            continue
        weights = torch.load(folder / f"{name}-{line['step']:06}.pt", weights_only=True)
        pixels = samples(*denoiser(name, weights, folder), num_samples)
        distance = float(frechet_distance(feature_set(pixels, features), reference))
        save_grid(pixels[:64], folder / f"{name}-{line['step']:06}.png")
        with (folder / "distances.jsonl").open("a") as file:
            file.write(json.dumps({**line, "num_samples": num_samples, "distance": distance}) + "\n")
        print(f"{name}: {line['minutes']:.2f} minutes, {num_samples} samples: {distance:.3f}", flush=True)


def save_grid(pixels: Tensor, file: Path) -> None:
    from torchvision.utils import save_image

    save_image(pixels.float() / 255, file, nrow=8)


def curve(lines: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Return minutes, in increasing order, and distances."""
    ordered = sorted((line["minutes"], line["distance"]) for line in lines)
    return [minutes for minutes, _ in ordered], [distance for _, distance in ordered]


def minute_reached(minutes: list[float], distances: list[float], target: float) -> str:
    """Return the minute at which a curve first reaches a distance, as text.

    The logarithm of the distance is interpolated linearly between two measurements.
    """
    for k, distance in enumerate(distances):
        if distance <= target:
            if k == 0:
                return f"before {minutes[0]:.2f}"
            fraction = math.log(distances[k - 1] / target) / math.log(distances[k - 1] / distance)
            return f"{minutes[k - 1] + fraction * (minutes[k] - minutes[k - 1]):.2f}"
    return "not reached"


def report(folder: Path) -> None:
    """Print the table and draw docs/time_to_quality.png."""
    measured = [json.loads(line) for line in (folder / "distances.jsonl").read_text().splitlines()]
    lines = list({(line["name"], line["step"]): line for line in measured}.values())  # the last measurement counts
    curves = {name: curve([line for line in lines if line["name"] == name]) for name in (*OURS, *PEERS)}
    counts = {line["name"]: int(line["num_samples"]) for line in lines}
    print("| run | final distance | at minute | samples | reached by ours at minute | speedup |")
    print("|---|---|---|---|---|---|")
    for name, (minutes, distances) in curves.items():
        if not distances:
            continue
        cells = [name, f"{distances[-1]:.2f}", f"{minutes[-1]:.1f}", f"{counts[name]:,}"]
        if name in PEERS:
            our_curve = curves["ours_default" if PEERS[name].size == "default" else "ours_unet_tiny"]
            when = minute_reached(*our_curve, distances[-1])
            ratio = "" if when == "not reached" else f"{minutes[-1] / float(when.removeprefix('before ')):.1f}"
            cells += [when, f"over {ratio}" if "before" in when else ratio]
        print("| " + " | ".join([*cells, "", ""][:6]) + " |")
    figure, axes = pyplot.subplots(figsize=(8.5, 4.5), layout="constrained")
    for name, (minutes, distances) in curves.items():
        if distances:
            style = "-o" if name in OURS else "--s"
            axes.semilogy(minutes, distances, style, markersize=4, label=name.replace("_", " "))
    axes.set(xlabel="minutes of training on two cores", ylabel="distance to Fashion-MNIST")
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(ROOT / "docs" / "time_to_quality.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "measure", "report"])
    parser.add_argument("name", nargs="?", choices=[*OURS, *PEERS])
    parser.add_argument("--path", type=Path, help="folder of Fashion-MNIST as parquet files")
    parser.add_argument("--folder", type=Path, required=True, help="folder of snapshots, distances and image grids")
    parser.add_argument("--minutes", type=float, default=10, help="training time of a peer")
    parser.add_argument("--only", type=float, nargs="*", default=[], help="measure only the snapshots of these minutes")
    parser.add_argument("--num-samples", type=int, default=NUM_SAMPLES)
    parser.add_argument("overrides", nargs="*", help="further overrides of our command")
    arguments, further = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    if arguments.action == "report":
        report(arguments.folder)
    elif arguments.action == "measure":
        measure(arguments.name, arguments.path, arguments.folder, arguments.only, arguments.num_samples)
    elif arguments.name in OURS:
        train_ours(arguments.name, arguments.path, arguments.folder, [*arguments.overrides, *further])
    else:
        train_peer(arguments.name, arguments.path, arguments.folder, arguments.minutes)


if __name__ == "__main__":
    main()
