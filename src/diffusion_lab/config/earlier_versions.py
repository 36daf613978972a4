"""Names of earlier versions and what they are called now.

A run folder keeps the config, the overrides and the measured numbers of the version that wrote it. Whoever reads one
passes it through this module first. Each mapping is idempotent: what has today's names stays as it is.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lab.fingerprints import version_of

_LAB = "diffusion_lab"

_EXPORTS = {  # module of version 0.3 -> package that exports its classes now
    **{f"callbacks.{module}": "callbacks" for module in (
        "checkpoints", "measure_accuracy", "measure_distance", "progress", "restore_on_divergence", "sample_images",
        "save_averages", "stop_on_signal", "throughput",
    )},
    **{f"data.{module}": "data" for module in ("augmentation", "duplicates", "image_datamodule", "image_store")},
    **{f"metrics.{module}": "metrics" for module in (
        "class_accuracy", "cmmd", "density_coverage", "frechet", "inception_score", "kid", "mean_over_images",
        "precision_recall",
    )},
    "guides": "runs",
    "layout": "distributed",
    "likelihood": "evaluation",
    "loggers": "training",
    "optimizers": "training",
    "reconstruction": "evaluation",
    "step_guard": "training",
}  # fmt: skip

_CLASSES = {"layout.environment": "cluster_environment", "step_guard.StepGuard": "NonFiniteGuard"}
"""Classes and functions of version 0.3 with another name now."""

_KEYS = {  # (_target_ now, key of version 0.3) -> key now
    (f"{_LAB}.process.LogNormalSigma", "deviation"): "std",
    (f"{_LAB}.process.LogitNormal", "deviation"): "std",
}

_OVERRIDES = {  # key of version 0.3 on the command line -> key now
    "optimizer.course.num_warmup_steps": "lr_schedule.num_warmup_steps",
    "optimizer.course.num_decay_steps": "lr_schedule.num_decay_steps",
    "times.deviation": "times.std",
}

_CHOICES = {("schedule", "warmup"): "beta_warmup"}  # (group, choice of version 0.3) -> choice now

_FINGERPRINT_FIELDS = {"quantisation": "quantization"}


def current_target(target: str) -> str:
    """Return the import path that a `_target_` of an earlier version has now."""
    module, _, name = target.removeprefix(f"{_LAB}.").rpartition(".")
    if not target.startswith(f"{_LAB}.") or module not in _EXPORTS:
        return target
    return f"{_LAB}.{_EXPORTS[module]}.{_CLASSES.get(f'{module}.{name}', name)}"


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved config, as plain containers, under today's names."""
    current: dict[str, Any] = _renamed(config)
    optimizer = current.get("optimizer")
    if isinstance(optimizer, dict) and "course" in optimizer:
        course = optimizer.pop("course") or {}
        current["lr_schedule"] = _lr_schedule(course.get("num_warmup_steps", 0), course.get("num_decay_steps"))
    return current


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a run was started with under today's names."""
    return list(dict.fromkeys(new for override in overrides for new in _current_override(override)))


def current_key(key: str) -> str | None:
    """Return today's name of a key of an earlier version; None if the key was never renamed."""
    return "lr_schedule" if key == "optimizer.course" else _OVERRIDES.get(key)


def current_choice(group: str, choice: str) -> str | None:
    """Return today's name of a group's choice of an earlier version; None if it was never renamed."""
    return _CHOICES.get((group, choice))


def current_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a measured number under today's names.

    Up to version 0.3 it held the version of the package in place of its own.
    """
    current = {_FINGERPRINT_FIELDS.get(key, key): _current_part(value) for key, value in fingerprint.items()}
    if "code" in current:
        current["version"] = version_of(str(current.pop("code")))
    return current


def _current_part(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_FINGERPRINT_FIELDS.get(key, key): _current_part(item) for key, item in value.items()}
    return [_current_part(item) for item in value] if isinstance(value, list) else value


def _renamed(node: Any) -> Any:
    if isinstance(node, list):
        return [_renamed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    target = current_target(str(node["_target_"])) if "_target_" in node else None
    renamed = {_KEYS.get((str(target), str(key)), key): _renamed(value) for key, value in node.items()}
    return renamed if target is None else renamed | {"_target_": target}


def _lr_schedule(num_warmup_steps: int, num_decay_steps: int | None) -> dict[str, Any]:
    if num_decay_steps is None:
        return {"_target_": f"{_LAB}.training.ConstantWithWarmup", "num_warmup_steps": num_warmup_steps}
    return {
        "_target_": f"{_LAB}.training.CosineWithWarmup",
        "num_warmup_steps": num_warmup_steps,
        "num_decay_steps": num_decay_steps,
    }


def _current_override(override: str) -> list[str]:
    prefix, key, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    value = re.sub(rf"\b{_LAB}(\.\w+)+", lambda found: current_target(found[0]), value)
    if key == "optimizer.course.num_decay_steps":
        constant = value.strip() in ("null", "None", "")
        return ["lr_schedule=constant"] if constant else ["lr_schedule=cosine", f"lr_schedule.num_decay_steps={value}"]
    group = key.partition("@")[0]
    choices = [_CHOICES.get((group, choice), choice) for choice in value.split(",")]
    return [f"{prefix}{_OVERRIDES.get(key, key)}{equals}{','.join(choices)}"]
