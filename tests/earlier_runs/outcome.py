"""Run one command of `recipes` on copied run folders and collect its figures."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from earlier_runs.recipes import ROOT_THEN, RUNS_THEN, Command

Start = Callable[[str, list[str]], None]
"""Start a script of src/ with its arguments; raise unless it succeeds."""

OF_THE_CLOCK = ("images_per_second", "data_wait", "measuring_seconds", "measuring_share", "time", "seconds", "minutes")


@dataclass
class Outcome:
    """figures: numbers by name.  digests: SHA-256 of weights and images.  images: uint8 [N, H, W, 3] or None."""

    figures: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    images: Any = None


def copy_runs(source: Path, target: Path, root: Path) -> Path:
    """Copy stored run folders to `target` as if they had been made there, by the checkout in `root`."""
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.suffix in (".yaml", ".json") and path.is_file():
            text = path.read_text().replace(RUNS_THEN, str(target)).replace(ROOT_THEN, str(root))
            path.write_text(text)
    return target


def perform(command: Command, start: Start, runs: Path, output: Path) -> Outcome:
    """Run a command on the folders below `runs`, which it may change if it resumes one of them."""
    words = [word.replace("{runs}", str(runs)) for word in command.words]
    if command.resume is None:
        words.append(f"hydra.run.dir={output}")
        if command.script in ("sample.py", "evaluate.py"):
            words.append(f"work_folder={output}_work")
    else:
        output = runs / command.resume
        step = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        words += [f"resume={output}", f"trainer.max_steps={step + (command.more_steps or 0)}"]
    start(command.script, words)
    if command.script == "reconstruct_ema.py":
        words_of_run = next(word for word in words if word.startswith("run="))
        return collect(Path(words_of_run.removeprefix("run=")), checkpoint="ema_0.080.ckpt")
    return collect(output)


def collect(folder: Path, checkpoint: str = "last.ckpt") -> Outcome:
    """Collect what stands in an output folder: measured numbers, logged numbers, weights, images."""
    outcome = Outcome()
    if (folder / "metrics.json").is_file():
        numbers = json.loads((folder / "metrics.json").read_text())["numbers"]
        outcome.figures |= {number["name"]: number["value"] for number in numbers}
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                columns = (*OF_THE_CLOCK, "step", "after_training")  # after_training marks rows, and is no number
                logged = {key: value for key, value in row.items() if value and key not in columns}
                outcome.figures |= {f"{key} at {row['step']}": float(value) for key, value in logged.items()}
    path = folder / "checkpoints" / checkpoint
    if path.is_file():
        weights = torch.load(path, weights_only=True)["state_dict"]
        outcome.digests["weights"] = digest(*weights.values())
        floats = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
        # Averages are many and change little: one norm for all tensors of each.
        keys = {name: name if name.startswith("network.") else ".".join(name.split(".")[:3]) for name in floats}
        for key in dict.fromkeys(keys.values()):
            own = [floats[name].double().flatten() for name in floats if keys[name] == key]
            outcome.figures[f"norm of {key}"] = float(torch.cat(own).norm())
    for path in folder.glob("samples_*.npz"):
        outcome.images = np.load(path)["arr_0"]
        outcome.digests["images"] = digest(torch.from_numpy(outcome.images))
    return outcome


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the bytes of some tensors."""
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
