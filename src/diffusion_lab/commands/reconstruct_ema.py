"""Makes the average of another length out of what a run with ema=power saved.

python src/reconstruct_ema.py run=logs/train/RUN length=0.07
python src/evaluate.py run=logs/train/RUN checkpoint=ema_0.070.ckpt
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.runs import load as run_loading

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.ema.post_hoc import Profile
    from diffusion_lab.ema.snapshots import Snapshot

WARNED, REFUSED = 0.01, 0.1
"""Shares of the wanted profile that may be missed."""


def reconstruct_ema(config: DictConfig) -> float:
    """Run folder -> snapshots -> checkpoint of one average.  Returns the share of its profile that is missed."""
    for name, example in (("run", "run=logs/train/RUN"), ("length", "length=0.1")):
        if OmegaConf.is_missing(config, name):
            raise UserError(f"{name} must be given ({example}), got nothing.")
    folder = Path(str(config.run))
    trained = run_loading.load_config(folder)
    wanted, snapshots = _chosen(config, folder, trained)

    from diffusion_lab.ema.post_hoc import combination
    from diffusion_lab.ema.snapshots import combined

    made = combination([snapshot.profile for snapshot in snapshots], wanted)
    _judge(made.residual, wanted, snapshots)
    path = folder / "checkpoints" / _file_name(wanted, is_last=config.step is None)
    _save(trained, combined(snapshots, made.coefficients), wanted, path)
    missed = f"{made.residual:.2%} of its profile is missed"
    print(f"length {wanted.relative_width} at step {wanted.step}, of {len(snapshots)} averages; {missed}")
    print(f"python src/evaluate.py run={config.run} checkpoint={path.name}", flush=True)
    return made.residual


def _chosen(config: DictConfig, folder: Path, trained: DictConfig) -> tuple["Profile", list["Snapshot"]]:
    """What is wanted, and the snapshots up to its step.  Raises UserError."""
    from diffusion_lab.ema.averages import LARGEST_WIDTH
    from diffusion_lab.ema.post_hoc import Profile
    from diffusion_lab.ema.snapshots import saved_averages

    length = config.length
    if not isinstance(length, (int, float)) or not 0 < length <= LARGEST_WIDTH:
        raise UserError(f"length must be a number in (0, {LARGEST_WIDTH}], got {length}.")
    rules = [node._target_.rpartition(".")[2] for node in trained.ema.decays.values()]
    if "PowerFunctionDecay" not in rules:
        raise UserError(
            f"run must be one that was trained with ema=power, got {folder}, trained with {', '.join(rules)}."
        )
    try:
        snapshots = saved_averages(folder / "checkpoints" / "ema")
    except ValueError as error:
        raise UserError(str(error)) from error
    if not snapshots:
        raise UserError(f"run must hold averages saved during training, got {folder}: checkpoints/ema has none.")
    step = _step(config.step, [snapshot.profile.step for snapshot in snapshots])
    return Profile(float(length), step), [snapshot for snapshot in snapshots if snapshot.profile.step <= step]


def _step(asked: int | None, saved: list[int]) -> int:
    if asked is None:
        return saved[-1]
    if asked not in saved:
        nearest = min(saved, key=lambda step: abs(step - asked)) if isinstance(asked, int) else saved[-1]
        raise UserError(f"step must be one of those saved, {saved[0]} to {saved[-1]}, got {asked}; try step={nearest}.")
    return asked


def _judge(residual: float, wanted: "Profile", snapshots: list["Snapshot"]) -> None:
    """Raises UserError where the snapshots cannot give the wanted average, and warns where they hardly can."""
    widths = ", ".join(str(width) for width in sorted({snapshot.profile.relative_width for snapshot in snapshots}))
    missed = (
        f"length={wanted.relative_width} is out of reach of {len(snapshots)} averages of widths {widths}: "
        f"{residual:.1%} of its profile is missed; more of them (callbacks.save_averages.every_n_steps) reach further."
    )
    if residual > REFUSED:
        raise UserError(missed)
    if residual > WARNED:
        print(f"warning: {missed}", file=sys.stderr)


def _file_name(wanted: "Profile", *, is_last: bool) -> str:
    length = max(f"{wanted.relative_width:.3f}", str(wanted.relative_width), key=len)
    return f"ema_{length}.ckpt" if is_last else f"ema_{length}_step_{wanted.step:07}.ckpt"


def _save(trained: DictConfig, state: dict[str, "Tensor"], wanted: "Profile", path: Path) -> None:
    """Writes a checkpoint in which every network is the reconstructed one."""
    from diffusion_lab import checkpoint_files

    module = run_loading.build_untrained_module(trained)
    for network in (module.network, *module.ema.networks.values()):
        network.load_state_dict(state)
    module.ema.num_updates = wanted.step
    content = {"state_dict": module.state_dict(), "global_step": wanted.step, "reconstructed": wanted.relative_width}
    checkpoint_files.write(content, path)


def main() -> None:
    entry.entry("reconstruct_ema", reconstruct_ema)
