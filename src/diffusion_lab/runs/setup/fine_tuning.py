"""Fine-tuning: training that starts from the weights of another run, with frozen parameters or adapters.

The other run is read as data: no class that its config names is imported. Torch is imported inside functions, so that
invalid settings are rejected without its import time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import override_key
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import class_names
from diffusion_lab.runs.find import Target, find_run
from diffusion_lab.runs.load import is_classifier_config, resolved_values
from diffusion_lab.runs.settings import typed_paths
from diffusion_lab.runs.settings.changes import changes_with_effect, flatten
from diffusion_lab.runs.setup.trained_config import read_trained_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.training.initial_weights import Classes
    from diffusion_lab.training.lora import LoRA

logger = logging.getLogger(__name__)

RECORD = "initialization.json"
"""Name of the file in a run folder that describes the weights from which the run started."""

WEIGHTS = "init.pt"
"""Name of the file in the folder of the checkpoints with the weights from which the run started."""

OF_OUTPUT = ("schedule", "prediction", "space")
"""Config keys that define the meaning of the output of a network."""

Names = Callable[[], Sequence[str]]
"""Function that returns the names of all classes of the training images."""


@dataclass(frozen=True)
class Initialization:
    """The weights from which a run starts.

    state: state_dict of the network, without adapters.  record: content of the file RECORD.
    """

    state: dict[str, Any]
    record: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the record and the weights to a run folder, and release the weights."""
        from diffusion_lab import checkpoint_files

        checkpoint_files.write({"state_dict": self.state}, folder / "checkpoints" / WEIGHTS)
        with atomic_file(folder / RECORD) as partial:
            partial.write_text(json.dumps(self.record, indent=2, allow_nan=False) + "\n")
        self.state.clear()


def prepare_network(network: "nn.Module", config: DictConfig, names: Names, *, is_new: bool) -> Initialization | None:
    """Load the initial weights into a network, freeze parameters and add adapters, as the config requests.

    names: names of the classes.  is_new: whether the run starts without a checkpoint, and therefore needs the weights.
    Returns what `init` has loaded, to be written to the run folder; None if it has loaded nothing.
    Raises UserError for settings that do not fit each other or the network.
    """
    adapters = lora_of(config)
    _require_settings(config, adapters)
    stored = Path(config.run_folder) / "checkpoints" / WEIGHTS
    initialization = None
    if is_new and stored.is_file():  # the run was stopped before its first checkpoint
        _load_stored(network, stored)
    elif is_new and config.get("init") is not None:
        initialization = _load_source(network, config, names)
    elif is_new and adapters is not None:
        raise UserError("`init` must name a run for lora.rank (adapters of random weights learn nothing), got null.")
    try:
        _freeze(network, config, adapters)
    except ValueError as error:
        raise UserError(str(error)) from error
    if initialization is not None:
        _require_trained(network, initialization.record["made_anew"], adapters)
    return initialization


def lora_of(config: DictConfig) -> "LoRA | None":
    """Return the adapters that a config requests; None for none.  Raises UserError for invalid settings."""
    node = config.get("lora")
    if node is not None and not OmegaConf.is_dict(node):
        raise UserError(f"lora must be a group of settings, got {node}; lora.rank=8 adds adapters of rank 8.")
    if node is None or node.get("rank") is None:
        return None
    from diffusion_lab.training.lora import LoRA

    layers = None if node.get("layers") is None else tuple(_globs(node["layers"], "lora.layers"))
    also_train = tuple(_globs(node.get("also_train"), "lora.also_train"))
    try:
        return LoRA(node["rank"], node.get("alpha"), layers, also_train)
    except ValueError as error:
        raise UserError(str(error)) from error


def require_no_init(arguments: Sequence[str]) -> None:
    """Raise UserError if the arguments of a command that resumes a run give initial weights."""
    given = [argument for argument in arguments if override_key(argument) in ("init", "init_weights")]
    if given and not given[0].endswith("=null"):
        raise UserError(
            f"`init` must not be given with `resume`, which continues from the state of its run, got {given[0]}."
        )


def _require_settings(config: DictConfig, adapters: "LoRA | None") -> None:
    """Raise UserError for settings of which one has no effect because of another, and for a missing package."""
    if adapters is not None:
        from diffusion_lab.training.lora import require_peft

        try:
            require_peft()
        except ValueError as error:
            raise UserError(str(error)) from error
    if adapters is not None and config.get("freeze"):
        raise UserError(
            f"`freeze` must be null with lora.rank, which freezes all parameters of the network, got {config.freeze}; "
            "lora.layers selects the layers with adapters."
        )
    if config.get("init") is None and config.get("init_weights") is not None:
        raise UserError(f"`init_weights` must be null without init=RUN, got {config.init_weights}.")
    node = config.get("lora") or {}
    given = [name for name in ("alpha", "layers", "also_train") if node.get(name)]
    if adapters is None and given:
        raise UserError(f"lora.{given[0]} must be null without lora.rank, got {node[given[0]]}; try lora.rank=8.")


def _globs(value: Any, setting: str) -> list[str]:
    """Return the glob patterns of a setting: one text, or a list of texts."""
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list) and not OmegaConf.is_list(listed):
        raise UserError(f"`{setting}` must be a glob pattern of names or a list of patterns, got {value}.")
    return [str(glob) for glob in listed]


def _freeze(network: "nn.Module", config: DictConfig, adapters: "LoRA | None") -> None:
    from diffusion_lab.training.freezing import freeze

    globs = _globs(config.get("freeze"), "freeze")
    if adapters is not None:
        adapters.inject(network)
    elif globs:
        freeze(network, globs)


def _require_trained(network: "nn.Module", made_anew: Sequence[str], adapters: "LoRA | None") -> None:
    """Raise UserError if parameters are frozen that do not have the weights of the other run."""
    from diffusion_lab.training.initial_weights import untrained

    if not (names := untrained(network, made_anew)):
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if adapters is not None:
        raise UserError(
            f"lora.also_train must match the parameters that `init` does not have and that start from random values, "
            f"got {list(adapters.also_train)}, which leaves {shown}; try 'lora.also_train=[{','.join(names[:3])}]'."
        )
    raise UserError(f"`freeze` must leave the parameters that `init` does not have, but it matches {shown}.")


def _load_stored(network: "nn.Module", file: Path) -> None:
    from diffusion_lab import checkpoint_files

    try:
        network.load_state_dict(checkpoint_files.read(file)["state_dict"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} must have the weights from which the run started ({reason}).") from error


def _load_source(network: "nn.Module", config: DictConfig, names: Names) -> Initialization:
    """Load the weights of the run that `init` names into a network."""
    from diffusion_lab.training import initial_weights, lora

    command = "train_classifier" if is_classifier_config(config) else "train"
    source = find_run("init", str(config.init), command)
    other = read_trained_config(source.folder)
    _require_kind(config, other, source)
    content, described = _read(source.checkpoint)
    try:
        state = lora.merged_checkpoint(content, source.checkpoint)["state_dict"]
        weights, chosen = initial_weights.network_weights(state, config.get("init_weights"))
        fit = initial_weights.take(network, weights, _classes(config, names), _classes_of_run(source.folder, other))
    except ValueError as error:
        raise UserError(str(error)) from error
    changes = changes_with_effect(*(flatten({"model": resolved_values(node)["model"]}) for node in (other, config)))
    _require_fit(fit.taken, weights, changes, source)
    record = described | {"step": content["global_step"], "weights": chosen, **asdict(fit), "settings": changes}
    _log(record, network)
    _note_other_meaning(config, other)
    return Initialization(dict(network.state_dict()), record)


def _read(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of a checkpoint, and the path, the size and the SHA-256 of the file that it was read from."""
    from diffusion_lab import checkpoint_files

    try:
        with checkpoint_files.same_file(checkpoint) as file, file.open("rb") as opened:  # training may replace it
            content = checkpoint_files.read_run(file)
            size, digest = file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
    except (checkpoint_files.DamagedCheckpointError, OSError) as error:
        reason = str(error).removesuffix(".")
        raise UserError(f"`init` must be a complete checkpoint, got {checkpoint} ({reason}).") from error
    return content, {"source": str(checkpoint), "size_bytes": size, "sha256": digest}


def _require_kind(config: DictConfig, other: DictConfig, source: Target) -> None:
    """Raise UserError if the network of a run is of another class than that of this run."""
    own, theirs = (str((node.get("model") or {}).get("_target_")).rpartition(".")[2] for node in (config, other))
    if own != theirs:
        raise UserError(
            f"`init` must be a run with a network of the class {own}, as `model` of this run, got "
            f"{terminal_text(source.folder)} with {terminal_text(theirs, 60)}."
        )


def _require_fit(taken: Sequence[str], weights: Mapping[str, "Tensor"], changes: Sequence[str], source: Target) -> None:
    """Raise UserError if no matrix and no kernel was taken: single biases fit by chance.

    changes: descriptions of the settings of the network that differ.
    """
    if any(weights[name].ndim > 1 for name in taken):
        return
    differing = f"; its settings of the network differ: {', '.join(changes[:6])}" if changes else ""
    hint = typed_paths.network_hint(source.folder)
    raise UserError(
        f"`init` must be a run whose weights fit the network of this run, got {terminal_text(source.checkpoint)}, of "
        f"which no layer has the same name and shape{terminal_text(differing, 400)}{hint}."
    )


def _classes(config: DictConfig, names: Names) -> "Classes | None":
    """Return the classes of the network of this run; None if it has no classes, or if their names are not known."""
    from diffusion_lab.training.initial_weights import Classes

    conditioning = config.get("conditioning") or {}
    num_classes = config.data.num_classes if is_classifier_config(config) else conditioning.get("num_classes", 0)
    found = list(names()) if num_classes else []
    if not num_classes or len(set(found)) != len(found) or len(found) != num_classes:
        return None
    return Classes({name: number for number, name in enumerate(found)}, _null(conditioning))


def _classes_of_run(folder: Path, config: DictConfig) -> "Classes | None":
    """Return the classes that another run was trained on; None if it has none, or if their names are not known."""
    from diffusion_lab.training.initial_weights import Classes

    found = class_names.load(folder)
    if not found or len(set(found)) != len(found):
        return None
    trained = class_names.load_trained(folder, config, len(found)) or range(len(found))
    return Classes({found[number]: number for number in trained}, _null(config.get("conditioning") or {}))


def _null(conditioning: Any) -> int | None:
    has_null = conditioning.get("num_classes") and conditioning.get("dropout")
    return int(conditioning["num_classes"]) if has_null else None


def _log(record: Mapping[str, Any], network: "nn.Module") -> None:
    anew, rows = record["made_anew"], record["rows"]
    text = f"init: {len(record['taken']):,} of {len(network.state_dict()):,} tensors are taken from "
    text += f"{terminal_text(record['source'])} (weights {record['weights']}, step {record['step']:,})"
    if anew:
        text += f"; made anew: {', '.join(anew[:4])}" + (f" and {len(anew) - 4:,} more" if len(anew) > 4 else "")
    if anew and record["settings"]:
        text += f" (because of {terminal_text(', '.join(record['settings'][:4]), 300)})"
    if rows:
        taken = next(iter(rows.values()))
        text += f", with the rows of {', '.join(map(terminal_text, taken[:5]))}" if taken else ", by the class names"
        text += f" and {len(taken) - 5:,} more" if len(taken) > 5 else ""
    logger.info("%s; %s in the run folder lists them.", text, RECORD)


def _note_other_meaning(config: DictConfig, other: DictConfig) -> None:
    """Log a note if the network of another run was trained to output another quantity."""
    plain: list[Any] = [resolved_values(node) for node in (other, config)]
    before, now = (flatten({key: node.get(key) for key in OF_OUTPUT if key in config}) for node in plain)
    if changes := changes_with_effect(before, now):
        logger.info(
            "the run of init was trained with other settings that define the output of the network, which must be "
            "learned anew: %s.",
            terminal_text(", ".join(changes[:4]), 400),
        )
