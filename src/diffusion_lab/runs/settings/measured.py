"""The settings of a measurement, as its fingerprints state them, by the names that the command line accepts."""

import functools
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.fingerprints import flat, short
from diffusion_lab.paths import CONF
from diffusion_lab.runs.settings.used import as_text

STATED = ("num_samples", "seed", "batch_size", "guidance_scale", "classifier_scale", "sampler", "features", "weights")
"""Fingerprint fields whose values, or the values of whose nested fields, are those of the setting of the same name."""

OF_SAMPLES = (
    *("num_samples", "reference", "label", "guidance", "guidance_scale", "guide", "classifier", "classifier_scale"),
)
"""Settings that affect only metrics of generated images."""

IN_SAMPLER = ("time_grid", "clipping")
"""Config groups whose objects belong to the sampler in a fingerprint."""

NESTED = tuple(f"sampler.{group}" for group in IN_SAMPLER)


def measured_settings(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the settings that fingerprints state, as text.  fingerprints: metric name -> fingerprint."""
    fields = flat(merged(fingerprints))
    of_sampler = [sampler for one in fingerprints.values() if (sampler := _in_metric(one, "sampler"))]
    fields = flat({"sampler": of_sampler[0]}) | fields if of_sampler else fields
    texts = {
        shown_name(field): shown_text(field, value)
        for field, value in fields.items()
        if field.partition(".")[0] in STATED and isinstance(value, str | int | float)  # not a list
    }
    shown = {key.removeprefix("sampler.") if key.startswith(NESTED) else key: text for key, text in texts.items()}
    of_data = {_choice(one): str(one.get("num_samples")) for one in fingerprints.values() if not _of_samples(one)}
    return shown | {f"metrics.{choice}.num_images": number for choice, number in of_data.items() if choice}


def is_used(key: str, fingerprints: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a setting of an evaluation can affect a metric value with one of these fingerprints."""
    return any(_affects(key, fingerprint) for fingerprint in fingerprints)


def _affects(key: str, fingerprint: Mapping[str, Any]) -> bool:
    group, _, rest = key.partition(".")
    if group in OF_SAMPLES:
        return "sampler" in fingerprint or (group in ("num_samples", "reference") and _of_samples(fingerprint))
    if group == "time_grid" and _in_metric(fingerprint, "time_grid") is not None:  # of the bound of a respaced chain
        return True
    if group in ("sampler", "time_grid"):
        return "sampler" in fingerprint or _in_metric(fingerprint, "sampler") is not None
    if group == "clipping":
        return any("clipping" in field for field in flat(fingerprint))
    if group == "features":
        return "features" in fingerprint
    choice = rest.partition(".")[0]
    measured = _class_of_metric(fingerprint)
    return group != "metrics" or measured is None or _classes_of_metrics().get(choice, measured) == measured


def _of_samples(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a value was measured on a set of samples: generated images, or images of unknown origin."""
    return "sampler" in fingerprint or "images" in fingerprint


def _in_metric(fingerprint: Mapping[str, Any], name: str) -> Any:
    metric = fingerprint.get("metric")
    return metric.get(name) if isinstance(metric, Mapping) else None


def _class_of_metric(fingerprint: Mapping[str, Any]) -> str | None:
    name = _in_metric(fingerprint, "name")
    return None if name is None else str(name)


def _choice(fingerprint: Mapping[str, Any]) -> str | None:
    """Return the choice in the config group `metrics` of the metric that a fingerprint describes."""
    measured = _class_of_metric(fingerprint)
    return next((choice for choice, name in _classes_of_metrics().items() if name == measured), None)


@functools.cache
def _classes_of_metrics() -> dict[str, str]:
    """Return the class of each metric in conf/metrics, or the class of its quantity for a mean over images."""
    classes = {}
    for path in sorted((CONF / "metrics").glob("*.yaml")):
        config = OmegaConf.load(path)
        target = OmegaConf.select(config, "quantity._target_") or OmegaConf.select(config, "_target_")
        if target is not None:
            classes[path.stem] = str(target).rpartition(".")[2]
    return classes


def merged(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of the fingerprints of one evaluation, first those of the metrics of generated images.

    The fingerprint of a mean over images of the data set has no sampler. Its number of images is not the setting
    num_samples, and is left out.
    """
    of_samples = [one for one in fingerprints.values() if _of_samples(one)]
    of_data = [one for one in fingerprints.values() if not _of_samples(one)]
    without_number = [{key: value for key, value in one.items() if key != "num_samples"} for one in of_data]
    return dict(ChainMap(*map(dict, (*of_samples, *without_number))))


def shown_name(field: str) -> str:
    """Return the name of the setting that a fingerprint field records."""
    return field.removesuffix(".name")


def shown_text(field: str, value: Any) -> str:
    """Return the value of a fingerprint field in the form in which the command line accepts it."""
    group = shown_name(field).rpartition(".")[2]
    if group not in ("sampler", "task", "mask", "posterior", *IN_SAMPLER):
        return short(as_text(value))
    targets = {
        path.stem: str(OmegaConf.select(OmegaConf.load(path), "_target_")) for path in (CONF / group).glob("*.yaml")
    }
    return next((choice for choice, target in targets.items() if target.endswith(f".{value}")), str(value))
