"""Check of a network of another package before training: one forward pass on two black images."""

import contextlib
import re
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffusion_lab.errors import UserError

if TYPE_CHECKING:
    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule


def name_data_resolution(message: str, config: DictConfig) -> str:
    """Return the error message of a network with the resolution that it recommends as a value of data.resolution."""

    def setting(found: re.Match[str]) -> str:
        factor = config.data.resolution // config.model.resolution  # above 1 for latents
        return f"try data.resolution={factor * int(found[1])}" if factor else found[0]

    return re.sub(r"try resolution=(\d+)", setting, message)


def require_input_channels(network: Any, config: DictConfig) -> None:
    """Raise UserError if a network for pixels takes images with another number of channels than the data have."""
    channels, given = config.data.channels, getattr(network, "in_channels", None)
    in_pixels = str((config.get("space") or {}).get("_target_")).endswith(".Pixels")
    if in_pixels and isinstance(given, int) and given != channels:
        raise UserError(
            f"`model` must take images with data.channels={channels}, got {type(network).__name__} with "
            f"in_channels={given}; in the file of the model, in_channels: ${{data.channels}} follows the images."
        )


def require_labels(network: Any, conditioning: Any) -> None:
    """Raise UserError for a network without classes if `conditioning`, the node of the config, has classes."""
    if (conditioning or {}).get("num_classes") and not network.labels.num_classes:
        raise UserError(
            "`model` must have the attribute labels for conditioning=label, got "
            f"{type(network).__name__}, which has no classes: `labels: ${{conditioning}}` in its config file passes "
            "them to its constructor, which sets self.labels; conditioning=none trains without classes."
        )


def require_forward(module: "DiffusionModule | ClassifierModule", datamodule: "ImageDataModule") -> None:
    """Raise UserError if the network raises an error, or if its output has another shape or does not depend on it.

    Networks of this package are not run, because their constructors already check their settings.
    """
    import torch

    from diffusion_lab.networks import ClassifierNetwork, Network, require_output
    from diffusion_lab.training.step_checks import without_gradient

    network: Any = module.network
    if type(network).__module__.partition(".")[0] == "diffusion_lab":
        return
    is_training, (x_t, *others) = network.training, example_inputs(module, datamodule)
    with torch.enable_grad(), torch.random.fork_rng():
        try:
            output = network.eval()(x_t, *others)
        except Exception as error:
            raise UserError(_failure(network, x_t, others, error)) from error
        finally:
            network.train(is_training)
    try:
        require_output(network, output, x_t, ClassifierNetwork if _is_classifier(module) else Network)
    except ValueError as error:
        raise UserError(f"`model`: {error}") from error
    if not output.requires_grad:
        raise UserError(f"`model`: {without_gradient(network, 'the output')}")


def example_inputs(module: "DiffusionModule | ClassifierModule", datamodule: "ImageDataModule") -> tuple[Any, ...]:
    """Return the arguments of the network for two black images at the last time of the schedule.

    Their labels are the smallest and the largest one, which is the null label if training drops labels.
    """
    import torch

    from diffusion_lab.networks import Condition

    network: Any = module.network
    x_t, time = black_images(module)
    if _is_classifier(module):
        return x_t, time
    label = torch.tensor([0, network.labels.num_rows - 1]) if network.labels.num_classes else None
    condition = Condition(label)
    if (low_resolution := datamodule.low_resolution) is not None:
        small = low_resolution.downsample(x_t)
        condition = low_resolution.condition(label, small, level=torch.zeros(2), noise=torch.zeros_like(small))
    elif channels := module.space.condition_channels(datamodule.condition_channels(module.image_shape[0])):
        condition = Condition(label, image=torch.zeros(2, channels, *x_t.shape[2:]))
    if (augmentation := datamodule.augmentation) is not None:
        condition = replace(condition, augmentation=torch.zeros(2, augmentation.num_channels))
    return x_t, time, condition


def black_images(module: "DiffusionModule | ClassifierModule") -> tuple[Any, Any]:
    """Return two black images and the time input of the network at the last time of the schedule."""
    import torch

    network: Any = module.network
    schedule = module.process.schedule
    x_t = torch.full((2, network.in_channels, network.resolution, network.resolution), -1.0)
    return x_t, schedule.network_time(torch.full((2,), schedule.t_max, dtype=torch.float64)).float()


def _is_classifier(module: "DiffusionModule | ClassifierModule") -> bool:
    from diffusion_lab.training.classifier_module import ClassifierModule

    return isinstance(module, ClassifierModule)  # a denoising network may have an attribute num_classes, too


def _failure(network: Any, x_t: Any, others: list[Any], error: Exception) -> str:
    """Return the error message for a network that raised an error for the inputs of `example_inputs`."""
    import torch

    name = type(network).__name__
    label = getattr(others[-1], "label", None)
    if label is not None and label[-1] > 0:
        smallest = replace(others[-1], label=torch.zeros_like(label))
        with contextlib.suppress(Exception):
            network(x_t, *others[:-1], smallest)
            null = " (the null label, which replaces dropped labels)" if network.labels.dropout else ""
            return (
                f"`model`: {name} cannot process the label {int(label[-1])}{null}, {reason(error)}; use "
                f"labels.num_rows ({network.labels.num_rows}) rows for an embedding of the labels."
            )
    return f"`model`: {name} cannot process images, {reason(error)}."


def reason(error: Exception) -> str:
    """Return the message of an error and the line of code that raised it, without the frames of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')} ({own[-1].filename}:{own[-1].lineno})"
