"""Snapshot files of the averages, which training saves for post-hoc EMA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion_lab import checkpoint_files
from diffusion_lab.ema.averages import EMA, LARGEST_WIDTH, PowerFunctionDecay
from diffusion_lab.ema.post_hoc import Profile


@dataclass(frozen=True)
class Snapshot:
    """An average in a snapshot file.  name: name of the average, since a file can contain several averages."""

    path: Path
    name: str
    profile: Profile


def save_averages(ema: EMA, folder: Path) -> None:
    """Write the power-function averages, in their dtype, to `step_N.pt`, with the number of updates N in 7 digits."""
    averages = {
        name: {"relative_width": decay.relative_width, **_parameters_and_buffers(ema.networks[name])}
        for name, decay in ema.decays.items()
        if isinstance(decay, PowerFunctionDecay)
    }
    checkpoint_files.write({"step": ema.num_updates, "averages": averages}, folder / f"step_{ema.num_updates:07}.pt")


def saved_averages(folder: Path) -> list[Snapshot]:
    """Return the averages in the files of a folder, sorted by step.

    Raises ValueError if a file cannot be read, or if the tensors of two averages have other names or shapes.
    """
    found, expected = list[Snapshot](), None
    for path in sorted(folder.glob("step_*.pt")):
        content = _read(path)
        try:
            for name, average in content["averages"].items():
                shapes = {**_shapes(average["parameters"]), **_shapes(average["buffers"])}
                if shapes != (expected := expected or shapes):
                    raise ValueError("its tensors are not those of the other files")
                found.append(Snapshot(path, name, Profile(_width(average["relative_width"]), _step(content["step"]))))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ValueError(
                f"{path} must contain averages, as a run with ema=power writes them ({reason})."
            ) from error
    return sorted(found, key=lambda snapshot: snapshot.profile.step)


def combined(snapshots: Sequence[Snapshot], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the state_dict of a network whose parameters are the weighted sum of the snapshots, summed in float64.

    coefficients: weight of each snapshot.
    The buffers are copied from the last element of `snapshots`. Only one file is in memory at a time.
    """
    total: dict[str, Tensor] = {}
    for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
        average = _read(snapshot.path)["averages"][snapshot.name]
        for name, parameter in average["parameters"].items():
            addend = parameter.double() * coefficient
            total[name] = total[name].add_(addend) if name in total else addend
    buffers = {name: buffer.clone() for name, buffer in average["buffers"].items()}
    return {name: total[name].to(parameter.dtype) for name, parameter in average["parameters"].items()} | buffers


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors.  Raises ValueError for tensors with more values than their file."""
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in tensors.values()):
        raise ValueError("a tensor has more values than the file")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _width(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 < value <= LARGEST_WIDTH:
        raise ValueError(f"relative_width must be a number in (0, {LARGEST_WIDTH}], got {str(value)[:50]}")
    return float(value)


def _step(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**53:
        raise ValueError(f"step must be a whole number in (0, 2^53), got {str(value)[:50]}")
    return value


def _parameters_and_buffers(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    averaged = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    return {
        "parameters": {name: value for name, value in state.items() if name in averaged},
        "buffers": {name: value for name, value in state.items() if name not in averaged},
    }


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file. The tensors are memory-mapped and read when they are used."""
    try:
        return checkpoint_files.read(path, mmap=True)
    except checkpoint_files.DamagedCheckpointError as error:
        raise ValueError(f"{error} Remove the file to combine the other files.") from error
