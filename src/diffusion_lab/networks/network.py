"""Interfaces that denoising networks and classifiers for noisy images implement.

A network from another library needs a short adapter:

    class Adapter(Network):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.in_channels, self.out_channels, self.resolution = network, 3, 3, 32

        def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
            return self.network(x_t, time)
"""

import inspect
from typing import Any

from torch import Tensor, is_tensor, nn

from diffusion_lab.networks.condition import Condition, Labels


class Network(nn.Module):
    """A denoising network: (noisy image, time, condition) -> output.

    in_channels: channels of the image.
    out_channels: channels of the output; in_channels, or 2 in_channels if the variance is learned.
    resolution: height and width of the image in pixels.
    labels: classes that the network is conditioned on; none by default.
    num_augmentation_channels: number of values per image that describe its augmentation and, as the last value, the
        noise level of its low-resolution image; 0 for a network that takes neither.
    condition_channels: channels of the condition image, such as a low-resolution image, see `Condition`; 0 for a
        network that takes none.
    mixes_labels: whether the network accepts the weights of all labels as label, see `Condition`; False by default.
    conventions: settings that later versions added and that differ from the behavior of earlier versions: name ->
        value. Fingerprints of metric values contain them.

    A module that has the first three attributes and this `forward` need not inherit from this class.
    """

    in_channels: int
    out_channels: int
    resolution: int
    labels: Labels = Labels()
    num_augmentation_channels: int = 0
    condition_channels: int = 0
    mixes_labels = False  # not annotated: networks that do not inherit from this class need not have it

    @property
    def conventions(self) -> dict[str, Any]:
        return {}

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the output of the network, an estimate of the target that the `Prediction` of the run defines.

        x_t: [B, in_channels, resolution, resolution], scaled by the preconditioning.
        time: [B], as returned by `NoiseSchedule.network_time`. It is the step index, 0 to T - 1, for a discrete
            schedule (for a time between two steps, a number between their indices), 1000 t for `RectifiedFlowSchedule`
            and for a subclass of `UnitTimeSchedule` that does not define `network_time`, 999 t for `VPSchedule`,
            log(sigma) / 4 for `EDMSchedule` (-1.55 to 1.1), and log(sigma / 2) for `VESchedule` (-5.3 to 3.2).
        Returns [B, out_channels, resolution, resolution].
        """
        raise NotImplementedError


class ClassifierNetwork(nn.Module):
    """A classifier for noisy images: (noisy image, time) -> logits.

    in_channels, resolution: channels, and height and width, of the image.  num_classes: number of logits.
    conventions: see `Network`.
    """

    in_channels: int
    resolution: int
    num_classes: int

    @property
    def conventions(self) -> dict[str, Any]:
        return {}

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Return logits, [B, num_classes].

        x_t: [B, in_channels, resolution, resolution], divided by sqrt(alpha_t^2 + sigma_t^2).
        time: [B], see `Network.forward`.
        """
        raise NotImplementedError


def missing_attributes(network: nn.Module, required: type[Network | ClassifierNetwork]) -> list[str]:
    """Return the names of the attributes without a default in `required` that `network` does not have.

    >>> from diffusion_lab import ClassifierNetwork, missing_attributes
    >>> missing_attributes(torch.nn.Linear(1, 1), ClassifierNetwork)
    ['in_channels', 'resolution', 'num_classes']
    """
    return [name for name in required.__annotations__ if not hasattr(network, name) and not hasattr(required, name)]


def require_network(network: Any, required: type[Network | ClassifierNetwork], name: str = "network") -> None:
    """Raise ValueError unless `network` has the attributes and the `forward` of `required`.

    Attributes that have a default in `required` are optional: if the network lacks them, they are set to the default.
    name: name of the argument or setting, for the error message.
    """
    problem = _network_problem(network, required)
    if problem is None:
        for key in required.__annotations__:
            if not hasattr(network, key):
                setattr(network, key, getattr(required, key))
        return
    inputs = ", ".join(list(inspect.signature(required.forward).parameters)[1:])
    attributes = [key for key in required.__annotations__ if not hasattr(required, key)]
    output = "[B, num_classes]" if required is ClassifierNetwork else "[B, out_channels, resolution, resolution]"
    raise ValueError(
        f"`{name}` must implement diffusion_lab.networks.{required.__name__}, got {_class_name(network)}, {problem}; "
        f"class MyNetwork({required.__name__}) sets {', '.join(attributes)} and defines forward({inputs}), which "
        f"returns {output}."
    )


def require_output(
    network: Any, output: Any, x_t: Tensor, required: type[Network | ClassifierNetwork] = Network
) -> None:
    """Raise ValueError unless `output` has the shape that `required` returns for the images x_t [B, C, H, W]."""
    # A plain function has no out_channels.
    out_channels = getattr(network, "out_channels", x_t.shape[1])
    of_image = (network.num_classes,) if required is ClassifierNetwork else (out_channels, *x_t.shape[2:])
    expected = (len(x_t), *of_image)
    if not is_tensor(output) or output.shape != expected:
        given = list(output.shape) if is_tensor(output) else type(output).__name__
        raise ValueError(
            f"`forward` of {_class_name(network)} must return a tensor of the shape {list(expected)} for images of the "
            f"shape {list(x_t.shape)}, got {given}."
        )


def _network_problem(network: Any, required: type[Network | ClassifierNetwork]) -> str | None:
    """Return why a network does not implement `required`, as a relative clause; None if it does."""
    if isinstance(network, type) or not isinstance(network, nn.Module):
        return "which is a class and not an object" if isinstance(network, type) else "which is no torch.nn.Module"
    if missing := missing_attributes(network, required):
        lacking = [f"no {name}" for name in missing]
        return f"which has {' and '.join(filter(None, [', '.join(lacking[:-1]), lacking[-1]]))}"
    for name in required.__annotations__:
        if name == "condition_channels" and hasattr(network, "low_resolution_channels"):
            return "whose attribute low_resolution_channels must have its new name condition_channels"
        value = getattr(network, name, getattr(required, name, None))
        if name == "labels" and not isinstance(value, Labels):
            return f"whose labels must be Labels (Labels() without classes), not {value!r}"
        least = 0 if hasattr(required, name) else 1
        if name != "labels" and (not isinstance(value, int) or value < least):
            return f"whose {name} must be a whole number of at least {least}, not {value!r}"
    if type(network).forward is nn.Module.forward:
        return "which defines no forward"
    num_inputs = len(inspect.signature(required.forward).parameters) - 1
    try:
        inspect.signature(network.forward).bind(*range(num_inputs))
    except TypeError:
        given = ", ".join(inspect.signature(network.forward).parameters)
        return f"whose forward takes ({given})"
    return None


def _class_name(network: Any) -> str:
    """Return the name of a class or function, or of the class of any other object."""
    return getattr(network, "__name__", type(network).__name__)
