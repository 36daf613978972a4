"""Make the run folders of version 0.3, or perform what they are used for with any checkout.

    python tests/earlier_runs/make.py CHECKOUT             # write tests/earlier_runs/v0_3
    python tests/earlier_runs/make.py CHECKOUT --compare   # perform every command of GOES_ON, compare with its figures

CHECKOUT holds src/ of the version to run, with torch and the other packages of this interpreter. One thread, float32.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(Path(sys.prefix, "peers")))

from earlier_runs.outcome import Outcome, copy_runs, perform  # noqa: E402
from earlier_runs.recipes import GOES_ON, MADE, ROOT_THEN, RUNS_THEN, Command  # noqa: E402

STORED = HERE / "v0_3"


def environment(checkout: Path) -> dict[str, str]:
    peers = str(Path(sys.prefix, "peers"))
    own = {"PYTHONPATH": f"{checkout / 'src'}:{peers}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def start(checkout: Path, script: str, words: list[str]) -> None:
    command = [sys.executable, str(checkout / "src" / script), *words]
    done = subprocess.run(command, env=environment(checkout), cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def make(checkout: Path) -> None:
    """Make every run folder in the checkout's logs/, and store them."""
    runs = Path(RUNS_THEN)
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    make_autoencoder(runs / "autoencoder")
    for name, command in MADE.items():
        print(name, flush=True)
        words = [word.replace("{runs}", str(runs)) for word in command.words]
        words.append(f"hydra.{'sweep' if command.is_sweep else 'run'}.dir={runs / name}")
        if command.stop_after is None:
            start(checkout, command.script, words)
        else:
            start_and_stop(checkout, command, words, runs / name)
    store(runs)


def start_and_stop(checkout: Path, command: Command, words: list[str], folder: Path) -> None:
    """Start a run and end it with SIGTERM once a previous checkpoint is there."""
    started = subprocess.Popen(
        [sys.executable, str(checkout / "src" / command.script), *words], env=environment(checkout), cwd=checkout
    )
    while not (folder / "checkpoints" / "previous.ckpt").is_file():
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    started.wait()


def make_autoencoder(folder: Path) -> None:
    """An untrained autoencoder of one-channel images with 8 x 8 times fewer latents."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2,
        layers_per_block=1, down_block_types=4 * ("DownEncoderBlock2D",), up_block_types=4 * ("UpDecoderBlock2D",),
    )  # fmt: skip
    network.save_pretrained(folder)


def store(runs: Path) -> None:
    shutil.rmtree(STORED, ignore_errors=True)
    shutil.copytree(runs, STORED, ignore=shutil.ignore_patterns("*.log", ".lock", "*.webp", "work"))
    for path in STORED.rglob("status.json"):
        path.write_text(path.read_text().replace(f'"{socket.gethostname()}"', '"laptop"'))


def perform_all(checkout: Path) -> dict[str, Outcome]:
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in GOES_ON.items():
            runs = copy_runs(STORED, Path(folder, name), checkout)
            outcomes[name] = perform(command, lambda script, words: start(checkout, script, words), runs, runs / "new")
            print(name, len(outcomes[name].figures), "figures", flush=True)
    return outcomes


def write(outcomes: dict[str, Outcome]) -> None:
    made_with = {"torch": torch.__version__, "cpu": cpu(), "threads": 1, "precision": "32-true"}
    content = {"made_with": made_with} | {
        name: {"figures": outcome.figures, "digests": outcome.digests} for name, outcome in outcomes.items()
    }
    (STORED / "expected.json").write_text(json.dumps(content, indent=1) + "\n")
    images = {name: outcome.images for name, outcome in outcomes.items() if outcome.images is not None}
    np.savez_compressed(STORED / "expected_images.npz", **images)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def compare(outcomes: dict[str, Outcome]) -> bool:
    """Print where outcomes differ from the stored ones in any bit, and return whether none does."""
    stored = json.loads((STORED / "expected.json").read_text())
    alike = True
    for name, outcome in outcomes.items():
        for part in ("figures", "digests"):
            own, expected = getattr(outcome, part), stored[name][part]
            differing = [key for key in own.keys() | expected.keys() if own.get(key) != expected.get(key)]
            for key in sorted(differing)[:5]:
                print(f"{name}: {key}: {expected.get(key)} then, {own.get(key)} now")
            alike = alike and not differing
    print("equal to the bit" if alike else "not equal")
    return alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare with the stored figures, write nothing")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if arguments.compare:
        sys.exit(not compare(perform_all(checkout)))
    if str(checkout) != ROOT_THEN:
        parser.error(f"runs hold the paths of their checkout: make them in {ROOT_THEN}, got {checkout}")
    make(checkout)
    write(perform_all(checkout))


if __name__ == "__main__":
    main()
