"""Distance to Fashion-MNIST against minutes of training, beside diffusers and denoising-diffusion-pytorch.

    python benchmarks/time_to_quality.py train ours_default --path FASHION_MNIST --folder WORK    # ten minutes
    python benchmarks/time_to_quality.py measure ours_default --path FASHION_MNIST --folder WORK
    python benchmarks/time_to_quality.py report --folder WORK     # the table, and docs/time_to_quality.png

All without labels. Weights are kept at some minutes and measured afterwards, in one way for all: 5000 samples of the
averaged weights by DDIM, 10 evenly spaced steps, estimates clipped to [-1, 1], bfloat16; `fd_fashion_cnn_5k` to the
60,000 training images. Ours starts its clock with the command, so that imports count; the peers' starts with their
first step. Where a peer's default network halves more often than twice, it sees 32 x 32, black around the 28 x 28.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.features import FashionCNN, to_uint8
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.networks import Condition
from diffusion_lab.process import CustomSchedule, Epsilon, GaussianProcess, LinearSchedule, Prediction, V
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM

ROOT = Path(__file__).parents[1]
MINUTES = (1, 2, 3, 4, 5, 6, 8, 10)
NUM_SAMPLES, BATCH_SIZE, NUM_STEPS = 5000, 100, 10


@dataclass(frozen=True)
class Peer:
    """library: whose loop.  size: of its network, its own default or ours.  added: bfloat16 and fused Adam."""

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


def train_ours(name: str, path: Path, folder: Path, words: list[str]) -> None:
    """Our command; its checkpoints are the snapshots, dated by their files."""
    run = folder / name
    command = [
        sys.executable, str(ROOT / "src" / "train.py"), *OURS[name], "data=fashion_mnist", f"data.path={path}",
        "data.batch_size=64", "data.num_held_out=0", f"data.cache_folder={folder / 'cache'}", "conditioning=none",
        "guidance_scale=1", "callbacks.sample_images=null", "callbacks.measure_distance=null",
        "callbacks.save_last.every_n_steps=100", "callbacks.save_last.keep_every_n_steps=100",
        f"hydra.run.dir={run}", *words,
    ]  # fmt: skip
    started = time.time()
    subprocess.run(command, check=True)
    files = sorted((run / "checkpoints").glob("step_*.ckpt"), key=lambda file: file.stat().st_mtime)
    minutes = {file.name: (file.stat().st_mtime - started) / 60 for file in files}
    wanted = {min(minutes, key=lambda kept: abs(minutes[kept] - minute)) for minute in MINUTES}
    for file in files:
        if file.name in wanted:
            state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
            prefix = "ema.networks.ema."
            prefix = next(key for key in state if key.startswith("ema.networks.")).rsplit(".", 1)[0]
            prefix = ".".join(prefix.split(".")[:3]) + "."
            weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            keep(folder, name, minutes[file.name], int(file.stem.split("_")[1]), weights)
        file.unlink()


def train_peer(name: str, path: Path, folder: Path, minutes: float) -> None:
    peer = PEERS[name]
    torch.manual_seed(0)
    pixels = images(path, folder / "cache").gather(torch.arange(60_000))
    pixels = F.pad(pixels, [(peer.side - 28) // 2] * 4)
    loop: peers.DiffusersLoop | peers.LucidrainsLoop
    if peer.library == "diffusers":
        network = peers.diffusers_network(peer.size, side=peer.side)
        loop = peers.DiffusersLoop(network, pixels, batch_size=peer.batch_size, bf16=peer.added, fused=peer.added)
    else:
        written = folder / f"images_{peer.side}"
        if not written.exists():
            peers.write_images(pixels, written)
        loop = peers.LucidrainsLoop(
            peers.lucidrains_network(peer.size), written, side=peer.side, batch_size=peer.batch_size,
            bf16=peer.added, fused=peer.added, results=folder / name,
        )  # fmt: skip
    due = [minute for minute in MINUTES if minute <= minutes] or [minutes]
    started, step = time.monotonic(), 0
    saving = 0.0

    def after_step() -> None:
        nonlocal step, saving
        step += 1
        now = time.monotonic()
        if now - started - saving >= 60 * due[0]:
            keep(folder, name, (now - started - saving) / 60, step, loop.averaged())
            due.pop(0)
            saving += time.monotonic() - now  # theirs is not the time in which we write
            if not due:
                raise peers.Stopped

    loop.run(after_step)


def keep(folder: Path, name: str, minutes: float, step: int, weights: dict[str, Tensor]) -> None:
    torch.save(weights, folder / f"{name}-{step:06}.pt")
    with (folder / "snapshots.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "step": step, "minutes": round(minutes, 3)}) + "\n")
    print(f"{name}: step {step} at {minutes:.2f} minutes", flush=True)


class TimedNetwork(nn.Module):
    """A peer's network, called as ours are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        answer = self.network(x_t, time)
        return answer if isinstance(answer, Tensor) else answer.sample  # type: ignore[no-any-return]


def denoiser(name: str, weights: dict[str, Tensor]) -> tuple[Denoiser, int]:
    """The averaged network as it was meant, and the side of its images."""
    prediction: Prediction
    if name in OURS:
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate

        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            words = [*OURS[name], "data=fashion_mnist", "conditioning=none", "guidance_scale=1"]
            config = compose("train", [word for word in words if not word.startswith("trainer")])
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
    return Denoiser(TimedNetwork(network).eval(), GaussianProcess(schedule), prediction), peer.side


@torch.no_grad()
def samples(denoiser: Denoiser, side: int, num_samples: int) -> Tensor:
    sampler = DDIM(denoiser.process, NUM_STEPS)
    drawn = []
    for start in range(0, num_samples, BATCH_SIZE):
        noise = ImageNoise(range(start, start + BATCH_SIZE), (1, side, side))
        with torch.autocast("cpu", torch.bfloat16):
            drawn.append(to_uint8(sampler.sample(denoiser, noise, Condition())))
    return torch.cat(drawn)


def seen(pixels: Tensor, features: FashionCNN) -> FeatureSet:
    return FeatureSet.of(torch.cat([features(part)["pooled"] for part in pixels.split(100)]))


def measure(name: str, path: Path, folder: Path, only: list[float], num_samples: int) -> None:
    """Adds the distance of each snapshot to distances.jsonl."""
    features = FashionCNN()
    reference = seen(images(path, folder / "cache").gather(torch.arange(60_000)), features)
    lines = [json.loads(line) for line in (folder / "snapshots.jsonl").read_text().splitlines()]
    for line in lines:
        if line["name"] != name or (only and not any(abs(line["minutes"] - minute) < 0.4 for minute in only)):
            continue
        weights = torch.load(folder / f"{name}-{line['step']:06}.pt", weights_only=True)
        pixels = samples(*denoiser(name, weights), num_samples)
        distance = float(frechet_distance(seen(pixels, features), reference))
        picture(pixels[:64], folder / f"{name}-{line['step']:06}.png")
        with (folder / "distances.jsonl").open("a") as file:
            file.write(json.dumps({**line, "num_samples": num_samples, "distance": distance}) + "\n")
        print(f"{name}: {line['minutes']:.2f} minutes, {num_samples} samples: {distance:.3f}", flush=True)


def picture(pixels: Tensor, file: Path) -> None:
    from torchvision.utils import save_image

    save_image(pixels.float() / 255, file, nrow=8)


def report(folder: Path) -> None:
    raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "measure", "report"])
    parser.add_argument("name", nargs="?", choices=[*OURS, *PEERS])
    parser.add_argument("--path", type=Path, help="folder of Fashion-MNIST as parquet")
    parser.add_argument("--folder", type=Path, required=True, help="for snapshots, distances and pictures")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", type=float, nargs="*", default=[], help="measure snapshots of these minutes alone")
    parser.add_argument("--num-samples", type=int, default=NUM_SAMPLES)
    parser.add_argument("words", nargs="*", help="more words of our command")
    arguments, extra = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    if arguments.action == "report":
        report(arguments.folder)
    elif arguments.action == "measure":
        measure(arguments.name, arguments.path, arguments.folder, arguments.only, arguments.num_samples)
    elif arguments.name in OURS:
        train_ours(arguments.name, arguments.path, arguments.folder, extra)
    else:
        train_peer(arguments.name, arguments.path, arguments.folder, arguments.minutes)


if __name__ == "__main__":
    main()
