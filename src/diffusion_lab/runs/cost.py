"""Estimate of the time and the memory of a training run, before its first step."""

from dataclasses import dataclass

import torch
from lightning import Trainer
from torch import nn

from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.callbacks.sample_images import SampleImages
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.runs.callbacks_setup import num_optimizer_states
from diffusion_lab.runs.network_check import example_inputs
from diffusion_lab.runs.operations import Operations, Rates, count_operations, measure_rates
from diffusion_lab.training.base_module import TrainedModule

BACKWARD = 2
"""Operations of a backward pass, relative to the forward pass."""

BANDWIDTH_FRACTION = {"cpu": 0.45, "cuda": 0.85}
"""Bandwidth of all operations, relative to that of a copy. On a CPU, it is 0.37 to 0.58 for unet_tiny and unet_cifar10
in float32 and bfloat16 (one thread of an EPYC 9004)."""

LAUNCH_SECONDS = {"cpu": 1e-5, "cuda": 1e-5}
"""Time in which PyTorch starts one operation and its backward pass."""

STEP_SECONDS = 0.003
"""Time of a step apart from the network and the optimizer: data, noise and Lightning."""

PARAMETER_TRAFFIC = 10
"""Reads and writes of each parameter by gradient norm, clipping, Adam and one average."""

LIBRARY_BYTES = {"cpu": 8e8, "cuda": 8e8}
"""Memory of the libraries on a CPU, or of the CUDA context on a GPU."""

TRANSIENT = 0.3
"""Memory of the gradients of activations at the peak of the backward pass, relative to the stored activations."""


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a training run.

    num_parameters: number of parameters of the network.  memory: peak memory of a rank, in bytes.
    seconds_per_step: duration of an optimizer step.  seconds_per_image: duration of a forward pass of one image on a
    rank.
    """

    num_parameters: int
    memory: float
    seconds_per_step: float
    seconds_per_image: float


def estimate(
    module: TrainedModule, datamodule: ImageDataModule, trainer: Trainer, rates: Rates | None = None
) -> Cost | None:
    """Estimate the cost of a run from the operations of the network; None if they cannot be counted.

    No step is executed.  rates: rates of the device; None measures them.
    """
    num_parts = trainer.accumulate_grad_batches
    size = max(1, datamodule.batch_size // (trainer.world_size * num_parts))
    try:
        operations = count_operations(module.network, example_inputs(module, datamodule), size)
    except Exception:  # networks of other packages may raise errors of any type
        return None
    device, precision = trainer.strategy.root_device, str(trainer.precision)
    rates = rates or measure_rates(device, _dtype(precision))
    kind = "cpu" if device.type == "cpu" else "cuda"
    parameters = list(module.network.parameters())
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    one_pass = _pass_seconds(operations, rates, kind, precision)
    passes = num_parts * (1 + BACKWARD + _recomputes(module.network))
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        memory=_memory(module, operations, kind, precision),
        seconds_per_step=passes * one_pass + PARAMETER_TRAFFIC * num_bytes / rates.bandwidth + STEP_SECONDS,
        seconds_per_image=one_pass / size,
    )


def measuring_seconds(cost: Cost, trainer: Trainer, module: TrainedModule, first_step: int) -> float:
    """Return the estimated duration of all sample grids and measurements after `first_step`, without their features."""
    total = 0.0
    for callback in trainer.callbacks:
        if isinstance(callback, MeasureDistance):
            num_images, sampler = callback.num_samples, callback.sampler
        elif isinstance(callback, SampleImages):
            num_images, sampler = callback.num_images, module.sampler
        else:
            continue
        doubled = callback.guidance is not None and callback.guidance.strength.guidance_scale != 1
        evaluations = num_images * len(sampler.times) * (2 if doubled else 1) / trainer.world_size
        total += callback.every.count(first_step, trainer.max_steps) * evaluations * cost.seconds_per_image
    return total


def describe(cost: Cost, num_steps: int, measuring: float) -> str:
    """Return the cost of num_steps steps in one line.  measuring: seconds for sample images and metrics."""
    training = cost.seconds_per_step * num_steps
    number = f"{cost.num_parameters / 1e6:,.1f} million" if cost.num_parameters >= 1e6 else f"{cost.num_parameters:,}"
    text = f"{number} parameters, about {cost.memory / 1e9:,.1f} GB of memory"
    if num_steps < 1:
        return f"{text}, about {cost.seconds_per_step:.2g} s per step"
    text += f", about {duration(training + measuring)} ({cost.seconds_per_step:.2g} s per step"
    return text + (f"; {duration(measuring)} for sample images and metrics)" if measuring >= 1 else ")")


def duration(seconds: float) -> str:
    """Return a duration in its largest unit: 5.3 hours, 12 minutes, 40 seconds."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 2):.0f} seconds"


def steps_in_an_hour(cost: Cost) -> int:
    """Return the number of steps that take less than an hour, rounded down to one digit."""
    steps = int(3600 / cost.seconds_per_step)
    unit = int(10 ** (len(str(steps)) - 1))
    return max(1, steps // unit * unit)


def _pass_seconds(operations: Operations, rates: Rates, kind: str, precision: str) -> float:
    """Return the duration of a forward pass: the time of products plus the time of reading and writing tensors."""
    # On a CPU, half-precision tensors save no time outside of products: casts take as much time as they save.
    width = 0.5 if kind == "cuda" and "16" in precision else 1.0
    busy = operations.flops / rates.flops + width * operations.traffic / (rates.bandwidth * BANDWIDTH_FRACTION[kind])
    launches = operations.count * LAUNCH_SECONDS[kind]
    return busy + launches if kind == "cpu" else max(busy, launches)  # a GPU computes while the next operation starts


def _memory(module: TrainedModule, operations: Operations, kind: str, precision: str) -> float:
    """Return the peak memory of a rank in bytes: parameters, gradients, optimizer, averages, activations, libraries."""
    trained = sum(parameter.nbytes for parameter in module.network.parameters() if parameter.requires_grad)
    width = 0.6 if "16" in precision else 1.0  # norms store float32 activations
    parameters = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    states = trained * num_optimizer_states(module)
    return float(parameters + trained + states) + (1 + TRANSIENT) * width * operations.stored + LIBRARY_BYTES[kind]


def _recomputes(network: nn.Module) -> bool:
    """Return whether the backward pass computes activations again."""
    return any(getattr(part, "checkpointing", False) is True for part in network.modules())


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
