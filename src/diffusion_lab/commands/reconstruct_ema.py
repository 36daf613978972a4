"""Reconstruct a weight average with another EMA length from a run with ema=power.

The method is from Karras et al. (2024), section 3.2. The EMA length, sigma_rel in the paper, is the standard deviation
of the averaging weights over the training steps, as a fraction of the training duration.

python src/reconstruct_ema.py run=logs/train/RUN length=0.07
python src/reconstruct_ema.py -m run=logs/train/RUN length=0.03,0.07,0.15
python src/evaluate.py -m run=logs/train/RUN checkpoint=ema_0.030.ckpt,ema_0.070.ckpt,ema_0.150.ckpt

Results: the run's checkpoints folder contains the average, such as ema_0.070.ckpt.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.config.program import command_line
from diffusion_lab.errors import UserError
from diffusion_lab.runs import load as run_loading
from diffusion_lab.runs.find import find_place, portable_path, run_of, shell_word
from diffusion_lab.runs.setup.trained_config import load_trained_config
from diffusion_lab.runs.trust import is_recorded
from diffusion_lab.runs.unrecorded import require_plain_folder

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.ema.post_hoc import Profile
    from diffusion_lab.ema.snapshots import Snapshot

logger = logging.getLogger(__name__)

WARNING_RESIDUAL, MAX_RESIDUAL = 0.01, 0.1
"""Largest residual without a warning, and largest residual without an error; see `ema.post_hoc.Combination`."""


def reconstruct_ema(config: DictConfig) -> float:
    """Write a checkpoint with the average for the requested EMA length, a linear combination of the run's snapshots.

    Returns the residual: the fraction of the averaging profile (the averaging weight of each training step) that the
    combination does not reproduce.
    """
    for name, example in (("run", "run=logs/train/RUN"), ("length", "length=0.1")):
        if OmegaConf.is_missing(config, name):
            raise UserError(f"`{name}` must be given ({example}), got no value.")
    folder = find_place("run", config.run, run_of("train")).folder
    trained = load_trained_config(folder)
    if not is_recorded(folder):
        require_plain_folder(folder)
    profile, snapshots = _requested_profile(config, folder, trained)

    from diffusion_lab.ema.post_hoc import combination
    from diffusion_lab.ema.snapshots import combined

    result = combination([snapshot.profile for snapshot in snapshots], profile)
    _check_residual(result.residual, profile, snapshots)
    path = folder / "checkpoints" / _file_name(profile, is_last=config.step is None)
    _save(trained, _merged(combined(snapshots, result.coefficients), trained), profile, path)
    print(
        f"EMA length {profile.relative_width} at step {profile.step}, from {len(snapshots)} snapshots; "
        f"{result.residual:.2%} of the averaging profile is not reproduced"
    )
    print(f"{command_line('evaluate')} run={shell_word(portable_path(folder))} checkpoint={path.name}", flush=True)
    return result.residual


def _requested_profile(config: DictConfig, folder: Path, trained: DictConfig) -> tuple["Profile", list["Snapshot"]]:
    """Return the averaging profile that `length` and `step` request, and the snapshots up to this step.

    Raises UserError if `length` or `step` is invalid, or if the run has no power-function averages or no snapshots.
    """
    from diffusion_lab.ema.averages import LARGEST_WIDTH
    from diffusion_lab.ema.post_hoc import Profile
    from diffusion_lab.ema.snapshots import saved_averages

    length = config.length
    if not isinstance(length, (int, float)) or not 0 < length <= LARGEST_WIDTH:
        raise UserError(f"`length` must be a number in (0, {LARGEST_WIDTH}], got {length}.")
    decays = [node._target_.rpartition(".")[2] for node in trained.ema.decays.values()]
    if "PowerFunctionDecay" not in decays:
        raise UserError(f"`run` must be a run trained with ema=power, got {folder} (ema.decays: {', '.join(decays)}).")
    try:
        snapshots = saved_averages(folder / "checkpoints" / "ema")
    except ValueError as error:
        raise UserError(str(error)) from error
    if not snapshots:
        raise UserError(f"`run` must be a run folder with snapshots in checkpoints/ema, got {folder} (no snapshots).")
    step = _requested_step(config.step, [snapshot.profile.step for snapshot in snapshots])
    return Profile(float(length), step), [snapshot for snapshot in snapshots if snapshot.profile.step <= step]


def _requested_step(step: int | None, saved: list[int]) -> int:
    if step is None:
        return saved[-1]
    if step not in saved:
        nearest = min(saved, key=lambda other: abs(other - step)) if isinstance(step, int) else saved[-1]
        raise UserError(
            f"`step` must be the step of a snapshot ({saved[0]} to {saved[-1]}), got {step}; try step={nearest}."
        )
    return step


def _check_residual(residual: float, profile: "Profile", snapshots: list["Snapshot"]) -> None:
    """Raise UserError if the snapshots cannot reproduce the profile, and log a warning if the residual is large."""
    widths = ", ".join(str(width) for width in sorted({snapshot.profile.relative_width for snapshot in snapshots}))
    message = (
        f"length={profile.relative_width} cannot be reconstructed accurately from {len(snapshots)} snapshots with "
        f"EMA lengths {widths}: {residual:.1%} of the averaging profile is not reproduced; training with a "
        "smaller callbacks.save_averages.every_n_steps extends the range of EMA lengths."
    )
    if residual > MAX_RESIDUAL:
        raise UserError(message)
    if residual > WARNING_RESIDUAL:
        logger.warning(message)


def _merged(state: dict[str, "Tensor"], trained: DictConfig) -> dict[str, "Tensor"]:
    """Return the state_dict of a network with its adapters, if the run has any, added to its weights."""
    from diffusion_lab.runs.setup.fine_tuning import lora_of
    from diffusion_lab.training import lora

    adapters = lora_of(trained)
    return state if adapters is None else lora.merged(state, adapters.scale)


def _file_name(profile: "Profile", *, is_last: bool) -> str:
    length = max(f"{profile.relative_width:.3f}", str(profile.relative_width), key=len)
    return f"ema_{length}.ckpt" if is_last else f"ema_{length}_step_{profile.step:07}.ckpt"


def _save(trained: DictConfig, state: dict[str, "Tensor"], profile: "Profile", path: Path) -> None:
    """Write a checkpoint in which every network has the reconstructed weights."""
    from diffusion_lab import checkpoint_files

    module = run_loading.build_untrained_module(trained)
    try:
        for network in (module.network, *module.ema.networks.values()):
            network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the snapshots in checkpoints/ema must have the tensors of `model` ({reason}).") from error
    module.ema.num_updates = profile.step
    content = {"state_dict": module.state_dict(), "global_step": profile.step, "reconstructed": profile.relative_width}
    checkpoint_files.write(content, path, concurrent=True)


def main() -> None:
    entry.entry("reconstruct_ema", reconstruct_ema)


if __name__ == "__main__":
    main()
