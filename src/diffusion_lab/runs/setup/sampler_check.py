"""Check of a sampler of another package before training and sampling: one black image, without the network."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lab.errors import UserError
from diffusion_lab.runs.setup.network_check import reason

if TYPE_CHECKING:
    from lightning import Callback
    from torch import Tensor

    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule

FEWEST_STEPS = 2
"""Number of steps of the check: the first step and the last step, which many samplers treat differently."""


def require_samples(module: "DiffusionModule | ClassifierModule", callbacks: "Sequence[Callback]" = ()) -> None:
    """Raise UserError if a sampler raises an error, or if one of its methods returns a value of another shape.

    The samplers are that of the module and those of the callbacks.
    """
    owners = {"`sampler`": module} | {f"`sampler` of {type(callback).__name__}": callback for callback in callbacks}
    for name, owner in owners.items():
        _require_sampler(getattr(owner, "sampler", None), module, name)


def _require_sampler(sampler: Any, module: Any, name: str) -> None:
    """Raise UserError as `require_samples`.  name: name of the sampler, for the error message.

    Samplers of this package are not run, because tests of this package run them.
    """
    import torch

    from diffusion_lab.samplers import Sampler
    from diffusion_lab.samplers.step_results import StepResultError

    if not isinstance(sampler, Sampler) or type(sampler).__module__.partition(".")[0] == "diffusion_lab":
        return
    with torch.random.fork_rng():
        with contextlib.suppress(Exception):  # a sampler may need more steps
            _sample(dataclasses.replace(sampler, num_steps=FEWEST_STEPS), module)  # type: ignore[type-var]
            return
        try:
            _sample(sampler, module)
        except StepResultError as error:
            raise UserError(f"{name}: {error}") from error
        except Exception as error:
            raise UserError(f"{name}: {type(sampler).__name__} cannot sample images, {reason(error)}.") from error


def _sample(sampler: Any, module: Any) -> None:
    """Generate one image, for which the output of the network is 0."""
    import torch

    from diffusion_lab.denoiser import Denoiser
    from diffusion_lab.networks import Condition
    from diffusion_lab.randomness import ImageNoise
    from diffusion_lab.samplers.step_results import require_sample

    network = module.network

    def zeros(x_t: "Tensor", time: "Tensor", condition: Condition) -> "Tensor":
        return x_t.new_zeros(len(x_t), network.out_channels, *x_t.shape[2:])

    zeros.out_channels = network.out_channels  # type: ignore[attr-defined]  # for the check of the output
    shape = (network.in_channels, network.resolution, network.resolution)
    label = torch.zeros(1, dtype=torch.int64) if network.labels.num_classes else None
    image = torch.zeros(1, channels, *shape[1:]) if (channels := network.condition_channels) else None
    denoiser = Denoiser(zeros, module.process, module.prediction)
    images = sampler.sample(denoiser, ImageNoise([0], shape), Condition(label, image=image), lambda *step: None)
    require_sample(sampler, images, (1, *shape))
