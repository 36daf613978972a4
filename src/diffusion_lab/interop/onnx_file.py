"""Export of a network to ONNX, and the comparison of its outputs with those of onnxruntime."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.errors import UserError
from diffusion_lab.networks import Condition, Network

FILE = "model.onnx"

TOLERANCE = 1e-5
"""Largest difference between the outputs of torch and of onnxruntime, relative to the largest output."""

INSTALL = "pip install 'diffusion-lab-framework[onnx]' (in a clone: pip install -e '.[onnx]') installs them"


class _PlainInputs(nn.Module):
    """A network whose inputs are tensors: x_t [B, C, H, W], time [B], and for a conditional network label [B]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        output: Tensor = self.network(x_t, time, Condition(label))
        return output


def require_packages() -> None:
    """Raise UserError unless the packages that write and run ONNX files are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"format=onnx requires the packages onnx, onnxscript and onnxruntime; {INSTALL}.") from error


def require_exportable(network: Network) -> None:
    """Raise UserError for a network that needs other inputs than an image, a time and a label."""
    if network.condition_channels:
        raise UserError(
            f"model.condition_channels must be 0 for format=onnx, got {network.condition_channels} channels of a "
            "condition image; format=safetensors exports every network."
        )


def write(network: Network, folder: Path) -> float:
    """Write a network in evaluation mode to FILE in a folder, for any batch size.

    Returns the largest difference of its outputs from those of onnxruntime, relative to the largest output.
    Raises UserError if the difference exceeds TOLERANCE.
    """
    names, inputs = _inputs(network, 2)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shapes = {name: {0: batch} for name in names}
    module = _PlainInputs(network).eval()
    options: dict[str, Any] = {"input_names": names, "output_names": ["output"], "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of the exporter on the name of the axis that all inputs share
        program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=shapes, **options)
    assert program is not None
    program.save(str(folder / FILE))
    return _checked(module, folder / FILE)


def _inputs(network: Network, batch_size: int) -> tuple[list[str], tuple[Tensor, ...]]:
    """Return the names and random values of the inputs of a network."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, network.in_channels, network.resolution, network.resolution)
    x_t = torch.randn(shape, generator=generator)
    time = torch.rand(batch_size, generator=generator) * 999
    if not network.labels.num_classes:
        return ["x_t", "time"], (x_t, time)
    label = torch.randint(network.labels.num_rows, (batch_size,), generator=generator)
    return ["x_t", "time", "label"], (x_t, time, label)


def _checked(module: _PlainInputs, file: Path) -> float:
    """Return the largest relative difference of a file from its network, for a batch size other than in the export."""
    import onnxruntime

    names, inputs = _inputs(module.network, 3)
    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})[0])
    with torch.no_grad():
        expected = module(*inputs)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise UserError(
            f"the outputs of {file.name} must differ by at most {TOLERANCE:g} from those of the network (relative to "
            f"the largest output), got {difference:.1e}."
        )
    return difference
