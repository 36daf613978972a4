"""Setup of guidance: config and run folders -> guidance with the networks of these runs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffusion_lab.config.program import command_line
from diffusion_lab.errors import UserError
from diffusion_lab.runs import class_names
from diffusion_lab.runs import load as run_loading
from diffusion_lab.runs.find import Target, find_run
from diffusion_lab.runs.setup.trained_config import load_trained_config

if TYPE_CHECKING:
    from diffusion_lab.denoiser import Denoiser
    from diffusion_lab.guidance import Guidance
    from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
    from diffusion_lab.training.diffusion_module import DiffusionModule

NONE = "none"
"""Value of the settings `guide` and `classifier` that removes the guide or the classifier of the run."""


def guidance(
    *,
    guidance_scale: float = 1.0,
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    num_channels: int | None = None,
    guide: str | None = None,
    classifier: str | None = None,
    classifier_scale: float = 1.0,
) -> "Guidance":
    """Build a `guidance.Guidance`.  guide, classifier: run folders, or checkpoint files in them.

    Raises UserError if `guide` is not a diffusion run or `classifier` is not a classifier run, and ValueError if a
    setting is out of range.
    """
    from diffusion_lab.guidance import Guidance, Strength

    noise_levels = tuple(interval) if isinstance(interval, Sequence) else interval
    strength = Strength(guidance_scale, noise_levels, rescale, num_channels)  # type: ignore[arg-type]
    return Guidance(
        strength,
        _guide(guide) if guide not in (None, NONE) else None,
        _classifier(classifier) if classifier not in (None, NONE) else None,
        classifier_scale,
    )


def require_guidable(guidance: "Guidance", module: "DiffusionModule") -> None:
    """Raise UserError unless the network of a module can be guided in this way."""
    scale, labels = guidance.strength.guidance_scale, module.labels
    if scale != 1 and guidance.guide is None and not labels.dropout:
        trained = "conditioning.dropout=0" if labels.num_classes else "conditioning=none"
        raise UserError(
            f"guidance_scale must be 1 for a network with {trained}, got {scale}; classifier-free guidance requires "
            "training with conditioning=label, which drops some labels."
        )
    try:
        guidance(module.denoiser(), labels)
    except ValueError as error:
        raise UserError(str(error)) from error


# Cached, because the callbacks for sample images and for the Fréchet distance use the same network.
@lru_cache(maxsize=2)
def _guide(path: str) -> "Denoiser":
    target = find_run("guide", path)
    config = load_trained_config(target.folder)
    if run_loading.is_classifier_config(config):
        raise UserError(
            f"`guide` must be a run folder of `{command_line('train')}`, got {target.folder}, which contains a "
            "classifier."
        )
    guide: Denoiser = _load_frozen(config, target).denoiser()
    return guide


@lru_cache(maxsize=2)
def _classifier(path: str) -> "NoisyClassifier":
    target = find_run("classifier", path, command="train_classifier")
    config = load_trained_config(target.folder)
    if not run_loading.is_classifier_config(config):
        raise UserError(
            f"`classifier` must be a run folder of `{command_line('train_classifier')}`, got {target.folder}, which "
            "contains a diffusion model."
        )
    module = _load_frozen(config, target)
    module.trained_classes = class_names.load_trained(target.folder, config, module.num_classes)
    classifier: NoisyClassifier = module.classifier
    return classifier


def _load_frozen(config: DictConfig, target: Target) -> Any:
    """Load a module whose weights require no gradients: guidance needs gradients with respect to images only."""
    return run_loading.load_weights(config, target.checkpoint).requires_grad_(False).eval()
