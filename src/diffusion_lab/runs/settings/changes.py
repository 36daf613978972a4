"""Differences between the saved config of a run and the config of a command that resumes it."""

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KeyPath = tuple[Any, ...]
"""The keys that lead to a value of a nested config."""

WITHOUT_EFFECT = (
    *("run_folder", "logs", "resume", "fork", "forked_from", "take_over", "trust", "logger.*", "sweep.*"),
    *("trainer.max_steps", "trainer.max_time", "trainer.log_every_n_steps", "trainer.enable_*", "trainer.profiler"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.plugins"),
    *("trainer.accumulate_grad_batches", "data.num_workers", "data.datamodule.num_workers"),
    *(f"data{part}.{name}" for part in ("", ".store", ".datamodule.store") for name in ("path", "image_root")),
    *(f"data{part}.cache_folder" for part in ("", ".store", ".datamodule.store")),
    *("callbacks.progress.*", "callbacks.throughput.*", "callbacks.sample_images.*", "callbacks.save_last.*"),
    # Only the callbacks of this package: a callback of the user may act on the training.
    *(f"callbacks.{name}.every_n_steps" for name in ("measure_distance", "measure_accuracy", "save_averages")),
    *(f"callbacks.{name}.folder" for name in ("measure_distance", "restore_on_divergence", "save_averages")),
    *("callbacks.measure_distance.also_at", "callbacks.measure_distance.batch_size"),
    "callbacks.measure_accuracy.batch_size",
)
"""Glob patterns for settings without an effect on the results of a run.

They change only where the run is executed, when it ends or which files it writes.
"""


def changes_with_effect(saved: Mapping[KeyPath, Any], wanted: Mapping[KeyPath, Any]) -> list[str]:
    """Return a description of each setting that differs between two configs and affects the result.

    saved, wanted: flattened configs, see `flatten`. A description is "NAME (was SAVED, got WANTED)". A setting that the
    config repeats elsewhere, as process.schedule repeats schedule, is described once.
    """
    changed = {key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key)}
    changes: dict[str, str] = {}
    for key in sorted(changed, key=lambda key: (len(key), key)):
        name = ".".join(map(str, key))
        is_repeated = any(name.endswith(f".{shorter}") for shorter in changes)
        if not is_repeated and not any(fnmatch.fnmatch(name, pattern) for pattern in WITHOUT_EFFECT):
            changes[name] = f"{name} (was {saved.get(key)}, got {wanted.get(key)})"
    return list(changes.values())


def by_choice(changes: list[str], saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return descriptions of changed settings in which one description of a config group replaces all its settings.

    saved, wanted: config group -> choice.
    """
    for group, choice in wanted.items():
        before = saved.get(group)
        others = [change for change in changes if not re.match(rf"{re.escape(str(group))}[. ]", change)]
        if None not in (before, choice) and before != choice and len(others) < len(changes):
            changes = [f"{group} (was {before}, got {choice})", *others]
    return changes


def reason_of(changes: Sequence[str], *, other_length: bool) -> str:
    """Return why all changes follow from another number of training steps; "" if they do not.

    changes: descriptions of the changes.  other_length: whether the number of training steps is another one.
    """
    follow = other_length and all(change.startswith("lr_schedule.") for change in changes)
    why = (
        "the learning-rate schedule is computed from trainer.max_steps, unless a run starts with lr_schedule=constant "
    )
    why += "and a fixed lr_schedule.num_warmup_steps"
    return f" (because {why})" if follow else ""


def flatten(node: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """Return a nested config as {key path: value}; lists and empty nodes are values."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {name: value for key, child in node.items() for name, value in flatten(child, (*path, key)).items()}


def unflatten(flat: Mapping[KeyPath, Any]) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for (*parents, name), value in flat.items():
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return nested


def relocate(saved: Any, folder: Path) -> Any:
    """Return a saved config in which `folder` replaces the run folder in every path inside the run folder."""
    old, new = str(saved["run_folder"]), str(folder)

    def relocated(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: relocated(child) for key, child in node.items()}
        if isinstance(node, list):
            return [relocated(child) for child in node]
        is_inside = isinstance(node, str) and (node == old or node.startswith(old + os.sep))
        return new + node[len(old) :] if is_inside else node

    return relocated(saved)
