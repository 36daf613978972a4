"""Guidance as a config names it: the folders of other runs -> the networks in them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffusion_lab.errors import UserError
from diffusion_lab.runs import load as run_loading

if TYPE_CHECKING:
    from diffusion_lab.denoiser import Denoiser
    from diffusion_lab.guidance import Guidance
    from diffusion_lab.guidance.noisy_classifier import NoisyClassifier

NONE = "none"
"""The word that leaves out what a run was trained to be sampled with."""


def guidance(
    *,
    guidance_scale: float = 1.0,
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    guide: str | None = None,
    classifier: str | None = None,
    classifier_scale: float = 1.0,
) -> "Guidance":
    """See `samplers.Guidance`; guide and classifier are run folders, or files of their checkpoints.

    Raises UserError where there is no such run, ValueError where a setting is out of range.
    """
    from diffusion_lab.guidance import Guidance, Strength

    levels = tuple(interval) if isinstance(interval, Sequence) else interval
    strength = Strength(guidance_scale, levels, rescale)  # type: ignore[arg-type]
    return Guidance(
        strength,
        _guide(guide) if guide not in (None, NONE) else None,
        _classifier(classifier) if classifier not in (None, NONE) else None,
        classifier_scale,
    )


# One network for all that ask for it: the pictures and the distances of a run are guided alike.
@lru_cache(maxsize=2)
def _guide(word: str) -> "Denoiser":
    folder, checkpoint = run_loading.find_run("guide", word)
    config = run_loading.load_config(folder, checkpoint)
    if "objective" not in config:
        raise UserError(f"guide must be the folder of a run of src/train.py, got {folder}, which holds another.")
    guide: Denoiser = _frozen(config, folder, checkpoint).denoiser()
    return guide


@lru_cache(maxsize=2)
def _classifier(word: str) -> "NoisyClassifier":
    folder, checkpoint = run_loading.find_run("classifier", word)
    config = run_loading.load_config(folder, checkpoint)
    if "objective" in config:
        raise UserError(
            f"classifier must be the folder of a run of src/train_classifier.py, got {folder}, which holds another."
        )
    classifier: NoisyClassifier = _frozen(config, folder, checkpoint).classifier
    return classifier


def _frozen(config: DictConfig, folder: Path, checkpoint: str) -> Any:
    """A trained module that nothing changes any more: a gradient after images keeps nothing for its weights."""
    return run_loading.load_weights(config, folder / "checkpoints" / checkpoint).requires_grad_(False).eval()
