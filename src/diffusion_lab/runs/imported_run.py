"""Run folders that were imported from checkpoints of other code: they are sampled and evaluated like any other run.

`provenance.json` in such a folder names the source with its SHA-256, what the mapping depended on, and the results of
the command verify. Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.config.compose import compose_config
from diffusion_lab.config.overrides import quote
from diffusion_lab.config.program import command_line
from diffusion_lab.config.saved_files import read_saved_json
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.runs import class_names
from diffusion_lab.runs.find import Place
from diffusion_lab.runs.load import build_module, instantiate_node, resolve
from diffusion_lab.runs.settings.typed_paths import make_absolute, write_overrides
from diffusion_lab.runs.trust import record, require_trusted

if TYPE_CHECKING:
    from torch import Tensor

PROVENANCE = "provenance.json"
"""Name of the file in the folder of an imported run that describes its source."""


def trained_here(place: Place) -> Place:
    """Return the place of a run.  Raises UserError for an imported run: it has no optimizer state to resume with."""
    if ((folder := place.folder) / PROVENANCE).exists():
        raise UserError(
            f"`resume` must be a run that `{command_line('train')}` has trained, got {folder}, which was imported "
            f"without the state of its training; init={folder} starts a new run from its weights."
        )
    return place


def require_new(folder: Path) -> None:
    """Raise UserError if a folder exists and is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"`output` must be a new folder, got {folder}, which exists.")


def provenance(folder: Path) -> dict[str, Any]:
    """Return the provenance of an imported run; empty for any other run.  Raises UserError for a damaged file."""
    content: dict[str, Any] = read_saved_json(folder / PROVENANCE, dict)
    return content


def write_provenance(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the provenance of an imported run."""
    with atomic_file(folder / PROVENANCE, concurrent=True) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def describe_source(source: Path) -> dict[str, Any]:
    """Return the path, the size and the SHA-256 of a file, or of the regular files of a folder in order of name."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    digests = {}
    for file in files:
        with file.open("rb") as opened:
            digests[file.relative_to(source).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    size = sum(file.stat().st_size for file in files)
    described: dict[str, Any] = {"source": str(source.resolve()), "size_bytes": size}
    return described | ({"sha256_of_files": digests} if source.is_dir() else {"sha256": next(iter(digests.values()))})


def write_run(
    folder: Path,
    command: str,
    overrides: Sequence[str],
    weights: Mapping[str, "Tensor"],
    *,
    step: int,
    described: Mapping[str, Any],
    nodes: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> DictConfig:
    """Write the folder of an imported run, and return its config.

    command: command whose config describes the run.  overrides: its overrides.  weights: state_dict of the network,
    which the checkpoint contains as the trained and as the averaged weights.  described: content of the provenance.
    nodes: config nodes that replace those which the overrides compose.  names: names of all classes.
    Raises UserError if the config does not describe a network with these weights, and if the nodes name code of others
    that the user has not trusted. No folder is left then.
    """
    require_new(folder)
    require_trusted(dict(nodes or {}), folder)
    config = compose_config(command, [*overrides, f"run_folder={quote(str(folder))}"])
    make_absolute(config)
    with open_dict(config):
        config.update(nodes or {})
    config = resolve(config)
    content = {"state_dict": _module_state(config, weights), "global_step": step}
    try:
        _write(folder, config, overrides, content, described)
        if names:
            class_names.save(names, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    record(folder)
    return config


def _write(
    folder: Path,
    config: DictConfig,
    overrides: Sequence[str],
    content: dict[str, Any],
    described: Mapping[str, Any],
) -> None:
    """Write the files of a run, with the config, which makes the folder a run, as the last one."""
    from diffusion_lab import checkpoint_files

    checkpoint_files.write(content, folder / "checkpoints" / checkpoint_files.LAST)
    write_provenance(folder, described)
    write_overrides(list(overrides), folder)
    with atomic_file(folder / "config.yaml") as partial:
        OmegaConf.save(config, partial)


def _module_state(config: DictConfig, weights: Mapping[str, "Tensor"]) -> dict[str, Any]:
    """Return the state_dict of the module of a config whose network, and its averages, have the given weights.

    The network is built without memory. All copies share the given tensors, so that the checkpoint has them once.
    Raises UserError unless the network of the config has tensors of these names and shapes.
    """
    import torch

    with torch.device("meta"):
        network = instantiate_node(config.model, "model")
    _require_fitting(network.state_dict(), weights)
    state = build_module(without_autoencoder(config), network).state_dict()
    for prefix in ("network.", "ema.networks.main."):
        state |= {f"{prefix}{name}": tensor for name, tensor in weights.items() if f"{prefix}{name}" in state}
    if left := [name for name, value in state.items() if isinstance(value, torch.Tensor) and value.is_meta]:
        raise UserError(f"ema must be an average named main for an imported run, got other averages ({left[0]}).")
    return dict(state)


def without_autoencoder(config: DictConfig) -> DictConfig:
    """Return a config without the autoencoder of a latent network, whose weights the network does not need."""
    if "space" not in config:  # a classifier
        return config
    return OmegaConf.create({**config, "space": {"_target_": "diffusion_lab.latents.Pixels"}})


def _require_fitting(own: Mapping[str, Any], weights: Mapping[str, "Tensor"]) -> None:
    from diffusion_lab.checkpoint_files import differing_entries

    if found := differing_entries(own, weights):
        raise UserError(f"`model` must have the tensors of the imported network, got other settings ({found[:300]}).")
