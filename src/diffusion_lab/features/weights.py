"""Files of weights: found, known by their sha256, and read without running what a pickle may hold."""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.features.features import FeaturesUnavailableError


def checked_sha256(path: Path, *beginnings: str | None) -> str:
    """Of a file's bytes, in hexadecimal.  Raises FeaturesUnavailableError unless it begins as it should.

    beginnings: None asks for nothing.  Raises ValueError for one that no sha256 has.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    for beginning in beginnings:
        if beginning is None:
            continue
        # The command line reads digits without quotes as a number.
        if not isinstance(beginning, str) or not re.fullmatch("[0-9a-fA-F]{1,64}", beginning):
            raise ValueError(
                f"sha256 must be 1 to 64 hexadecimal digits, those of a number in quotes, got {beginning}."
            )
        if not found.startswith(beginning.lower()):
            raise FeaturesUnavailableError(
                f"features.weights={path} must have a sha256 that begins with {beginning}, got {found}: it is damaged, "
                "or another file."
            )
    return found


def read(path: Path) -> dict[str, Tensor]:
    """The weights by name in a file of torch's or, where its name says so, of safetensors.

    Raises FeaturesUnavailableError where the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise FeaturesUnavailableError(f"features.weights must be a file of weights, got {path}, which is missing.")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # whatever a damaged or malicious file leads the reader to
        raise FeaturesUnavailableError(
            f"features.weights={path} cannot be read as weights: {_short(error)}."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FeaturesUnavailableError(f"features.weights={path} must hold weights by name, got something else.")
    return state


def load(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Gives a network its weights.  Raises FeaturesUnavailableError where they are another network's."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise another_network(path, error) from error


def another_network(path: Path, reason: object) -> FeaturesUnavailableError:
    """The refusal of weights that do not fit."""
    return FeaturesUnavailableError(f"features.weights={path} are weights of another network: {_short(reason)}.")


def download(url: str, path: Path, beginning: str) -> None:
    """Fetches a file once, whole, with a sha256 that begins so; other processes wait for it.  Raises OSError."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_file():
            return
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            torch.hub.download_url_to_file(url, str(partial), hash_prefix=beginning, progress=False)
            partial.replace(path)
        except (RuntimeError, HTTPException) as error:  # another hash; a connection that broke
            raise OSError(_short(error)) from error
        finally:
            partial.unlink(missing_ok=True)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _short(reason: object) -> str:
    """The first words of what a library says, on one line."""
    return " ".join(str(reason).split())[:150].rstrip(".: ")
