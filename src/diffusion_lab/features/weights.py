"""Pretrained weights files: download, verification of the SHA-256, and reading without unpickling code."""

import hashlib
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.checkpoint_files import require_stored
from diffusion_lab.features.features import FeaturesUnavailableError
from diffusion_lab.files.atomic import atomic_file


def verify_sha256(path: Path, *prefixes: str | None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, after a check that it begins with each of the prefixes.

    prefixes: required first digits of the SHA-256; None accepts any file.
    Raises FeaturesUnavailableError if the SHA-256 does not begin with a prefix, and ValueError if a prefix does not
    consist of 1 to 64 hexadecimal digits.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for prefix in prefixes:
        if prefix is None:
            continue
        # An override that consists of digits only is parsed as a number unless it is quoted.
        if not isinstance(prefix, str) or not re.fullmatch("[0-9a-fA-F]{1,64}", prefix):
            raise ValueError(
                f"features.sha256 must be 1 to 64 hexadecimal digits (in quotes if all are decimal), got {prefix}."
            )
        if not sha256.startswith(prefix.lower()):
            raise FeaturesUnavailableError(
                f"the weights file {path} must have a SHA-256 that begins with {prefix}, got {sha256}; the file is "
                "damaged or not the expected file."
            )
    return sha256


def read(path: Path) -> dict[str, Tensor]:
    """Read weights by name from a `.safetensors` file or from a file written by torch.save.

    Raises FeaturesUnavailableError if the file is missing or damaged, or contains anything other than tensors by name.
    """
    if not path.is_file():
        raise FeaturesUnavailableError(f"features.weights must be an existing weights file, got {path}.")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # damaged or malicious files raise errors of any type
        raise FeaturesUnavailableError(
            f"the weights file {path} cannot be read as weights: {_short(error)}."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FeaturesUnavailableError(f"the weights file {path} must contain a dict of tensors, got other content.")
    return state


def load(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network.  Raises FeaturesUnavailableError if their keys or shapes do not match."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise incompatible_weights(path, error) from error


def incompatible_weights(path: Path, reason: object) -> FeaturesUnavailableError:
    """Return the error for weights that do not fit a network."""
    return FeaturesUnavailableError(f"the weights file {path} contains weights of another network: {_short(reason)}.")


def download(url: str, path: Path, sha256_prefix: str) -> None:
    """Download a file if it does not exist; concurrent callers wait while one process downloads the file.

    Raises OSError if the download fails or its SHA-256 does not begin with sha256_prefix.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_file():
            return
        try:
            with atomic_file(path) as partial:
                torch.hub.download_url_to_file(url, str(partial), hash_prefix=sha256_prefix, progress=False)
        except (RuntimeError, HTTPException) as error:  # a different hash; an interrupted connection
            raise OSError(_short(error)) from error


def _read_torch(path: Path) -> Any:
    require_stored(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _short(reason: object) -> str:
    """Return the beginning of a library's error message, on one line."""
    return " ".join(str(reason).split())[:150].rstrip(".: ")
