"""Outputs of an original network on random inputs, as a witness for the equality of an imported network.

A witness is an .npz file that a script writes next to the original code, see `witness_scripts`, or is computed from a
network in this process. Its arrays, of which the last four may be missing, and its trajectory has all or none of them:

    x [B, C, H, W], time [B] (the number that the original network receives, before it is scaled), label [B] or none,
    low_resolution [B, C, h, w] or none, output [B, C', H, W] or logits [B, classes]
    noise [B, C, H, W], times [N] (decreasing step indices, or noise levels of EDM), clip [] and samples [B, C, H, W]:
    deterministic DDIM from `noise`, through `times`, to the clean images
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import memory_budget, open_regular
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, NoiseSchedule, Prediction, TableSchedule
from diffusion_lab.samplers import DDIM, NoClipping, StaticClipping, TimeGrid

REQUIRED = {"x": 4, "time": 1, "output": None}
OPTIONAL = {"label": 1, "low_resolution": 4, "noise": 4, "times": 1, "clip": 0, "samples": 4}
"""Arrays of a witness, with their numbers of dimensions."""

TRAJECTORY = ("noise", "times", "clip", "samples")


@dataclass(frozen=True)
class Witness:
    """Inputs of an original network, its outputs, and a sampling trajectory, see the docstring of the module."""

    x: Tensor
    time: Tensor
    output: Tensor
    label: Tensor | None = None
    low_resolution: Tensor | None = None
    noise: Tensor | None = None
    times: Tensor | None = None
    clip: bool = True
    samples: Tensor | None = None

    @classmethod
    def read(cls, file: Path) -> "Witness":
        """Read a witness from an .npz file.  Raises UserError for a file that is not one."""
        arrays = {name: torch.from_numpy(array) for name, array in _read_arrays(file).items()}
        if "label" in arrays:
            arrays["label"] = arrays["label"].long()
        clip = bool(arrays.pop("clip", torch.tensor(True)))
        return cls(**arrays, clip=clip)


@dataclass(frozen=True)
class GivenTimes(TimeGrid):
    """A time grid with given times, decreasing and above 0."""

    times: tuple[float, ...]

    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        return self.times


def differences(
    network: nn.Module, witness: Witness, process: GaussianProcess, prediction: Prediction | None
) -> dict[str, float]:
    """Return the largest relative difference of each comparison: output_float32, output_float64, trajectory_float32.

    The relative difference of two tensors is the largest absolute difference, divided by the largest absolute value
    of the original.  prediction: None for a classifier, which has no trajectory.
    Raises UserError if the network does not take the inputs of the witness.
    """
    found = {}
    network = network.eval()
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32):  # float32 is the last one, as the network had it
            output = _output(network.to(dtype), witness, dtype)
            found[f"output_{str(dtype).removeprefix('torch.')}"] = relative_difference(output, witness.output)
    if prediction is not None and witness.samples is not None:
        samples = _samples(network, witness, process, prediction)
        found["trajectory_float32"] = relative_difference(samples, witness.samples)
    return found


def relative_difference(ours: Tensor, original: Tensor) -> float:
    """Return the largest absolute difference divided by the largest absolute value of the original.

    Raises UserError for other shapes.
    """
    if ours.shape != original.shape:
        raise UserError(
            f"`against` must have outputs of the shape {list(ours.shape)} for this run, got {list(original.shape)}."
        )
    largest = original.double().abs().max().clamp(min=1e-30)
    return float((ours.double() - original.double()).abs().max() / largest)


def _output(network: nn.Module, witness: Witness, dtype: torch.dtype) -> Tensor:
    """Return the output of the imported network in a precision."""
    low = None if witness.low_resolution is None else witness.low_resolution.to(dtype)
    condition = [Condition(witness.label, image=low)] if hasattr(network, "labels") else []
    try:
        output: Tensor = network(witness.x.to(dtype), witness.time.double(), *condition)
    except (ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"`against` must have inputs of this network: {' '.join(str(error).split())[:200]}") from error
    return output


def _samples(network: nn.Module, witness: Witness, process: GaussianProcess, prediction: Prediction) -> Tensor:
    """Return the images that deterministic DDIM generates from the noise of the witness."""
    assert witness.noise is not None
    assert witness.times is not None
    schedule, times = process.schedule, witness.times.double()
    if isinstance(schedule, TableSchedule):
        times = (times + 1) / schedule.num_timesteps
    clipping = StaticClipping() if witness.clip else NoClipping()
    try:
        grid = GivenTimes(tuple(times.tolist()))
        sampler = DDIM(process, num_steps=None, time_grid=grid, clipping=clipping)
        condition = Condition(witness.label, image=witness.low_resolution)
        return sampler.sample(Denoiser(network, process, prediction), witness.noise.float(), condition)
    except ValueError as error:
        raise UserError(f"`against` must have a trajectory of this run: {error}") from error


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a witness.  Raises UserError for a file that is damaged, too large, or no witness."""
    try:
        with open_regular(file) as opened:
            with zipfile.ZipFile(opened) as archive:
                if sum(record.file_size for record in archive.infolist()) > memory_budget():
                    raise ValueError("it is larger than a quarter of the memory")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as content:
                arrays = {name: np.asarray(content[name]) for name in content.files if name in REQUIRED | OPTIONAL}
    except Exception as error:  # damaged archives raise errors of any type
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"`against` must be an .npz file of a script of print_script, got {file} ({reason})."
        ) from error
    for name, num_dimensions in (REQUIRED | OPTIONAL).items():
        _require(name, arrays, num_dimensions, file)
    if 0 < sum(name in arrays for name in TRAJECTORY) < len(TRAJECTORY):
        raise UserError(f"{file} must have all of the arrays {', '.join(TRAJECTORY)} or none of them.")
    return arrays


def _require(name: str, arrays: dict[str, np.ndarray], num_dimensions: int | None, file: Path) -> None:
    """Raise UserError unless an array is finite numbers of the expected dimensions, or is missing and optional."""
    if name not in arrays:
        if name in REQUIRED:
            raise UserError(f"{file} must have the arrays {', '.join(REQUIRED)}, got none named {name}.")
        return
    array, sizes = arrays[name], {len(arrays[k]) for k in ("x", "time", "output", "label") if k in arrays}
    has_dimensions = array.ndim == num_dimensions or (num_dimensions is None and array.ndim in (2, 4))
    if array.dtype.kind not in "fiub" or not has_dimensions or not np.isfinite(array).all() or len(sizes) != 1:
        raise UserError(f"{file}: {name} must be finite numbers for one batch, got {array.dtype} {list(array.shape)}.")
