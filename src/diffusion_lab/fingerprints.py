"""The protocol of a number as plain data, and whether two numbers may stand beside each other."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VERSION = 1
"""Version of fingerprints: raised when the same settings come to give another number."""

LONGEST = 16
"""Numbers of a sequence that are written out; of a longer one the sha256 is."""

MISSING = "nothing"
"""In the place of a field that a fingerprint does not have."""

COVERED = {
    "experiment": ("schedule", "sampler", "weights", "features", "reference", "label", "guidance_scale", "precision"),
    "objective": ("sampler",),
    "run": ("schedule", "weights.decay"),
    "checkpoint": ("weights.decay",),
    "schedule": ("schedule", "sampler"),
    "ema": ("weights",),
    "time_grid": ("sampler",),
    "clipping": ("sampler",),
    "variance": ("sampler",),
    "metrics": ("metric",),
    "data": ("reference", "features", "label"),
    "conditioning": ("label",),
    "guidance_scale": ("guidance",),
    "guide": ("guidance_scale", "guidance"),
    "cascade": ("low_resolution", "sampler", "weights", "schedule", "guidance_scale", "space"),
    "cascade_steps": ("sampler", "low_resolution"),
    "low_resolution_noise": ("low_resolution",),
    "classifier": ("classifier_scale", "label"),
    "trainer": ("precision",),
    "callbacks": ("sampler", "batch_size", "guidance_scale"),
}
"""What a setting of the command line decides in a fingerprint, beside the field of its own name."""


class IncomparableError(ValueError):
    """Numbers that were made in unlike ways; the message says in which field."""


def describe(value: Any, omit: Sequence[str] = ()) -> Any:
    """An object as plain data: a dataclass is its name and its fields, but for those in `omit`, at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in omit]
        return {"name": type(value).__name__} | {name: describe(getattr(value, name), omit) for name in names}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON knows no infinity, and NaN is unlike itself
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


def digest(content: Any) -> str:
    """sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def version_of(code: str) -> int | str:
    """Return the fingerprint version of a version of this package.

    0.3 and later give the numbers of version 1. Versions before are returned as they are: they gave other numbers.
    """
    return VERSION if tuple(int(part) for part in re.findall(r"\d+", code)[:2]) >= (0, 3) else code


def flat(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted names: {"sampler": {"eta": 0}} -> {"sampler.eta": 0}."""
    fields: dict[str, Any] = {}
    for key, value in fingerprint.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return fields


def differences(fingerprints: Sequence[Mapping[str, Any]], allowed: Iterable[str] = ()) -> dict[str, list[Any]]:
    """The fields that are not the same in all, with their values in the order of the fingerprints.

    allowed: fields that may differ; "sampler" covers all below it.
    """
    allowed = tuple(allowed)
    fields = [flat(fingerprint) for fingerprint in fingerprints]
    names = dict.fromkeys(name for one in fields for name in one)
    found = {name: [one.get(name, MISSING) for one in fields] for name in names if not _covered(name, allowed)}
    unlike = {name: values for name, values in found.items() if any(value != values[0] for value in values)}
    # Of things of unlike kinds, the kind says all.
    kinds = [name.removesuffix("name") for name in unlike if name.endswith(".name")]
    return {n: v for n, v in unlike.items() if n.endswith(".name") or not any(n.startswith(kind) for kind in kinds)}


def require_comparable(name: str, fingerprints: Mapping[str, Mapping[str, Any]], allowed: Iterable[str] = ()) -> None:
    """Raises UnlikeNumbersError unless all numbers of a name were made in the same way.

    fingerprints: by what the numbers are of.  allowed: see `differences`.
    """
    found = differences(list(fingerprints.values()), allowed)
    if not found:
        return
    field, values = next(iter(found.items()))
    owners = list(fingerprints)
    other = next(k for k, value in enumerate(values) if value != values[0])
    more = f" ({', '.join(list(found)[1:5])} differ too)" if len(found) > 1 else ""
    raise IncomparableError(
        f"{name} cannot be compared: {field} is {_short(values[0])} in {owners[0]} and {_short(values[other])} in "
        f"{owners[other]}{more}; allow=[{_remedy(found)}] compares them nevertheless"
    )


def fields_set_by(swept: Iterable[str]) -> list[str]:
    """The fields that settings of the command line decide: what somebody who varies them asks to see differ."""
    fields: list[str] = []
    for key in swept:
        word = key.lstrip("+").split("@")[0]
        group = word.partition(".")[0]
        fields += [word, *(COVERED.get(group, ()))]
        fields += [group] if group in ("sampler", "features", "schedule", "ema") else []
        fields += ["precision"] if word in ("trainer.precision", "trainer.compile", "trainer.channels_last") else []
    return list(dict.fromkeys(fields))


def _covered(name: str, allowed: Iterable[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in allowed)


def _remedy(found: Mapping[str, Any]) -> str:
    return ",".join(dict.fromkeys(name.partition(".")[0] for name in found))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
