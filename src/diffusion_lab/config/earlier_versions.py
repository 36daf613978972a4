"""Mappings from the names in earlier versions of this package to the current names.

The config, the overrides and the metric values in a run folder have the names of the version that wrote them. All code
that reads them first converts them with this module. Each mapping is idempotent: current names stay unchanged.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lab.fingerprints import version_of

_LAB = "diffusion_lab"

_EXPORTS = {  # module in version 0.3 -> package that now exports its classes
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
    "reconstruction": "evaluation",
    "step_guard": "training",
}  # fmt: skip

_ADAM = (f"{_LAB}.optimizers.Adam", f"{_LAB}.training.Adam")
"""Earlier class for Adam with decoupled weight decay; torch.optim.Adam takes its place."""

_CLASSES = {"layout.environment": "cluster_environment", "step_guard.StepGuard": "NonFiniteGuard"}
"""Classes and functions that were renamed after version 0.3."""

_KEYS = {  # (current _target_, key in version 0.3) -> current key
    **{
        (f"{_LAB}.networks.{network}", "low_resolution_channels"): "condition_channels"
        for network in ("UNet", "DiT", "PixelTransformer", "FromDiffusers")
    },
    (f"{_LAB}.process.LogNormalSigma", "deviation"): "std",
    (f"{_LAB}.process.LogitNormal", "deviation"): "std",
    (f"{_LAB}.metrics.PrecisionRecall", "num_neighbours"): "num_neighbors",
    (f"{_LAB}.metrics.DensityCoverage", "num_neighbours"): "num_neighbors",
}

_SELECTION = ("num_held_out", "classes", "max_images")
"""Arguments of ImageStore in version 0.3 that are now arguments of Selection."""

_OVERRIDES = {  # override key in version 0.3 -> current key
    "model.low_resolution_channels": "model.condition_channels",
    "optimizer.course.num_warmup_steps": "lr_schedule.num_warmup_steps",
    "optimizer.course.num_decay_steps": "lr_schedule.num_decay_steps",
    "times.deviation": "times.std",
    "metrics.precision_recall.num_neighbours": "metrics.precision_recall.num_neighbors",
    "metrics.density_coverage.num_neighbours": "metrics.density_coverage.num_neighbors",
}

_CHOICES = {("schedule", "warmup"): "beta_warmup"}  # (group, choice in version 0.3) -> current choice

_FINGERPRINT_FIELDS = {"quantisation": "quantization", "num_neighbours": "num_neighbors"}


def current_target(target: str) -> str:
    """Return the current import path for a `_target_` from an earlier version."""
    if target in _ADAM:
        return "torch.optim.Adam"
    module, _, name = target.removeprefix(f"{_LAB}.").rpartition(".")
    if not target.startswith(f"{_LAB}.") or module not in _EXPORTS:
        return target
    return f"{_LAB}.{_EXPORTS[module]}.{_CLASSES.get(f'{module}.{name}', name)}"


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved config with current names, as plain containers."""
    current: dict[str, Any] = _renamed(config)
    optimizer = current.get("optimizer")
    if isinstance(optimizer, dict) and config["optimizer"].get("_target_") in _ADAM:
        optimizer |= {"decoupled_weight_decay": True, "decay_matrices_only": False}
    if isinstance(optimizer, dict) and "course" in optimizer:
        earlier = optimizer.pop("course") or {}
        current["lr_schedule"] = _lr_schedule(earlier.get("num_warmup_steps", 0), earlier.get("num_decay_steps"))
    return current


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a saved run with current names."""
    return list(dict.fromkeys(new for override in overrides for new in _current_override(override)))


def current_key(key: str) -> str | None:
    """Return the current name of a key from an earlier version, or None if the key was never renamed."""
    return "lr_schedule" if key == "optimizer.course" else _OVERRIDES.get(key)


def current_choice(group: str, choice: str) -> str | None:
    """Return the current name of a choice in a config group, or None if the choice was never renamed."""
    return _CHOICES.get((group, choice))


def current_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a metric value with current names.

    Up to version 0.3, fingerprints contained the package version instead of a fingerprint version, and the subset size
    of a kernel distance as it was set, even if the sets were smaller.
    """
    current = {_FINGERPRINT_FIELDS.get(key, key): _current_part(value) for key, value in fingerprint.items()}
    if "code" in current:
        current["version"] = version_of(str(current.pop("code")))
    if (metric := current.get("metric") or {}).get("name") == "KernelDistance":
        sizes = metric["subset_size"], current["num_samples"], current["reference"]["rows"]
        current["metric"] = {**metric, "subset_size": min(sizes)}
    return current


def current_metric(name: str) -> str:
    """Return the current name of a metric value; KID and Inception Score now name values of Inception features only."""
    earlier = re.match(r"(kid|is)(?=(_std)?_(?!std_|inception_))", name)
    return f"{ {'kid': 'kd', 'is': 'cs'}[earlier[0]] }{name[earlier.end() :]}" if earlier else name


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
    if target == f"{_LAB}.data.ImageStore" and "selection" not in renamed:
        selection = {key: renamed.pop(key) for key in _SELECTION if key in renamed}
        renamed["selection"] = {"_target_": f"{_LAB}.data.Selection"} | selection
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
