"""The settings of a measurement, as its fingerprints state them, by the names that the command line accepts."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.fingerprints import flat, short
from diffusion_lab.paths import CONF
from diffusion_lab.runs.used_settings import as_text

STATED = ("num_samples", "seed", "batch_size", "guidance_scale", "classifier_scale", "sampler", "features")
"""Fingerprint fields whose values, or the values of whose nested fields, are those of the setting of the same name."""

IN_SAMPLER = ("time_grid", "clipping")
"""Config groups whose objects belong to the sampler in a fingerprint."""

NESTED = tuple(f"sampler.{group}" for group in IN_SAMPLER)


def measured_settings(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the settings that fingerprints state, as text.  fingerprints: metric name -> fingerprint."""
    fields = flat(merged(fingerprints))
    texts = {
        shown_name(field): shown_text(field, value)
        for field, value in fields.items()
        if field.partition(".")[0] in STATED and isinstance(value, str | int | float)  # not a list
    }
    return {key.removeprefix("sampler.") if key.startswith(NESTED) else key: text for key, text in texts.items()}


def merged(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of the fingerprints of one evaluation, first those of the metrics of generated images.

    The fingerprint of a mean over images of the data set has no sampler. Its number of images is not the setting
    num_samples, and is left out.
    """
    of_samples = [one for one in fingerprints.values() if "sampler" in one]
    of_data = [one for one in fingerprints.values() if "sampler" not in one]
    without_number = [{key: value for key, value in one.items() if key != "num_samples"} for one in of_data]
    return dict(ChainMap(*map(dict, (*of_samples, *without_number))))


def shown_name(field: str) -> str:
    """Return the name of the setting that a fingerprint field records."""
    return field.removesuffix(".name")


def shown_text(field: str, value: Any) -> str:
    """Return the value of a fingerprint field in the form in which the command line accepts it."""
    group = shown_name(field).rpartition(".")[2]
    if group not in ("sampler", *IN_SAMPLER):
        return short(as_text(value))
    targets = {
        path.stem: str(OmegaConf.select(OmegaConf.load(path), "_target_")) for path in (CONF / group).glob("*.yaml")
    }
    return next((choice for choice, target in targets.items() if target.endswith(f".{value}")), str(value))
