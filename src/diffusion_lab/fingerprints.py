"""Fingerprints of metric values, and their comparison. A fingerprint contains the settings that determine the value.

Fingerprints are plain data: nested dictionaries and lists of numbers, strings, booleans and None.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from diffusion_lab.contracts import is_described
from diffusion_lab.errors import UserError

VERSION = 1
"""Fingerprint version. Increment it if a release gives different metric values for the same settings."""

LONGEST = 16
"""Longest sequence that is stored in full; a longer one is stored as its SHA-256."""

RAW_WEIGHTS = {"kind": "raw"}
"""Fingerprint of the trained weights; that of an average of them has the kind ema and a name."""

MISSING = "missing"
"""Value that `differences` returns for a field that a fingerprint does not have."""

COVERED = {
    "experiment": (
        *("schedule", "sampler", "weights", "features", "reference", "label", "guidance_scale", "precision"),
        "conventions",
    ),
    "model": ("conventions",),
    "prediction": ("conventions",),
    "augmentation": ("conventions",),
    "objective": ("sampler",),
    "run": ("schedule", "weights.decay"),
    "checkpoint": ("weights.decay",),
    "schedule": ("schedule", "sampler"),
    "ema": ("weights",),
    "time_grid": ("sampler", "metric.time_grid"),
    "clipping": ("sampler",),
    "variance": ("sampler",),
    "metrics": ("metric",),
    "data": ("reference", "features", "label", "condition"),
    "conditioning": ("label",),
    "guidance_scale": ("guidance",),
    "guide": ("guidance_scale", "guidance"),
    "cascade": ("low_resolution", "sampler", "weights", "schedule", "guidance_scale", "space", "task", "sources"),
    "cascade_steps": ("sampler", "low_resolution"),
    "low_resolution_noise": ("low_resolution",),
    "masking": ("condition",),
    "classifier": ("classifier_scale", "label"),
    "trainer": ("precision",),
    "posterior": ("task",),
    "mask": ("task", "sources"),
    "num_images": ("sources", "num_samples"),
    "callbacks": ("sampler", "batch_size", "guidance_scale"),
}
"""Setting -> fingerprint fields that the setting determines, in addition to the field with the same name."""


FIELDS = (
    *("num_samples", "metric", "features", "reference", "sampler", "schedule", "weights", "label", "batch_size"),
    *("guidance_scale", "guidance", "guide", "classifier", "classifier_scale", "low_resolution", "condition", "space"),
    *("quantization", "seed", "precision", "conventions", "images", "preparation", "version"),
    *("task", "sources", "num_results"),
)
"""All fields that a fingerprint can have, without their nested fields."""


def describe(value: Any, omit: Sequence[str] = ()) -> Any:
    """Return an object as plain data: a dataclass as its class name and fields.

    Fields in `omit` are left out, and so are fields that a later version added and that have their default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.name not in omit]
        names = [field.name for field in fields if is_described(field, getattr(value, field.name))]
        return {"name": _class_name(value)} | {name: describe(getattr(value, name), omit) for name in names}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity, and NaN != NaN
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item, omit) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, Sequence):
        if len(value) > LONGEST:
            return {"length": len(value), "sha256": digest([describe(item, omit) for item in value])}
        return [describe(item, omit) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def _class_name(value: Any) -> str:
    """Return the name of a class of this package, or the import path of a class of another package."""
    kind = type(value)
    own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def version_of(code: str) -> int | str:
    """Return the fingerprint version of a release of this package.

    Releases from 0.3 on give the metric values of fingerprint version 1. Earlier releases gave different values; for
    an earlier release, `code` is returned unchanged.
    code: version of the release, such as 0.3.1.
    """
    return VERSION if tuple(int(part) for part in re.findall(r"\d+", code)[:2]) >= (0, 3) else code


def flat(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields to dotted names: {"sampler": {"eta": 0}} -> {"sampler.eta": 0}.

    The trained weights, whose fingerprint has no name, are named as in the setting `weights`: raw.
    """
    fields: dict[str, Any] = {}
    for key, value in fingerprint.items():
        value = RAW_WEIGHTS | {"name": "raw"} if value == RAW_WEIGHTS else value
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return fields


def differences(fingerprints: Sequence[Mapping[str, Any]], allowed: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Return the fields that differ: dotted name -> values, one per fingerprint in the order of `fingerprints`.

    allowed: fields that may differ; a field such as "sampler" includes its nested fields.
    """
    allowed = tuple(allowed)
    fields = [flat(fingerprint) for fingerprint in fingerprints]
    names = dict.fromkeys(name for one in fields for name in one)
    found = {name: [one.get(name, MISSING) for one in fields] for name in names if not _covered(name, allowed)}
    different = {name: values for name, values in found.items() if any(value != values[0] for value in values)}
    # If the classes of two objects differ, the differences between the fields of the objects are not of interest.
    classes = [name.removesuffix("name") for name in different if name.endswith(".name")]
    return {n: v for n, v in different.items() if not any(n.startswith(c) and n != f"{c}name" for c in classes)}


def describe_differences(found: Mapping[str, Sequence[Any]], owners: Sequence[str]) -> str:
    """Return differences as text, such as "seed is 0 in A and 3 in B".

    found: see `differences`.  owners: run or file of each value.
    """
    texts = []
    for field, values in found.items():
        other = next(k for k, value in enumerate(values) if value != values[0])
        if field == "weights.name":
            subject, shown = "weights are", [_shown_weights(value) for value in values]
        else:
            subject, shown = f"{field} is", [short(value) for value in values]
        texts.append(f"{subject} {shown[0]} in {owners[0]} and {shown[other]} in {owners[other]}")
    return "; ".join(texts)


def _shown_weights(name: Any) -> str:
    return short(name) if name in ("raw", MISSING) else f"{short(name)} (an average)"


def allowed_fields(given: str | Sequence[str] | None) -> list[str]:
    """Return the fingerprint fields that the setting `allow` lists.  Raises UserError for other names."""
    fields = [given] if isinstance(given, str) else list(given or ())
    for field in fields:
        if (name := str(field).partition(".")[0]) not in FIELDS:
            close = get_close_matches(name, FIELDS, n=1)
            hint = f"; perhaps you mean {close[0]}" if close else ""
            hint = f"; {name} is recorded in {', '.join(COVERED[name])}" if name in COVERED else hint
            raise UserError(f"`allow` must list fingerprint fields ({', '.join(FIELDS)}), got {field}{hint}.")
    return fields


def fields_set_by(swept: Iterable[str]) -> list[str]:
    """Return the fingerprint fields in which the runs of a sweep may differ.

    swept: settings that the sweep varies, such as sampler.num_steps. They determine the returned fields.
    """
    fields: list[str] = []
    for key in swept:
        setting = key.lstrip("+").split("@")[0]
        group = setting.partition(".")[0]
        fields += [setting, *(COVERED.get(group, ()))]
        fields += [group] if group in ("sampler", "features", "schedule", "ema") else []
        fields += ["precision"] if setting in ("trainer.precision", "trainer.compile", "trainer.channels_last") else []
    return list(dict.fromkeys(fields))


def _covered(name: str, allowed: Iterable[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in allowed)


def short(value: Any) -> str:
    """Return a value in a fingerprint as text; long values, such as SHA-256 digests, are abbreviated."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
