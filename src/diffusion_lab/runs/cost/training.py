"""Estimate of the time and the memory of a training run, before its first step."""

from dataclasses import dataclass

from lightning import Trainer

from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.callbacks.sample_images import SampleImages
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.runs.cost.operations import Operations, Rates, count_operations
from diffusion_lab.runs.setup.callbacks import num_optimizer_states
from diffusion_lab.runs.setup.network_check import example_inputs
from diffusion_lab.training.base_module import TrainedModule

BACKWARD = 2
"""Operations of a backward pass, relative to the forward pass."""

BANDWIDTH_FRACTION = {"cpu": 0.45, "gpu": 0.85}
"""Bandwidth of all operations, relative to that of a copy. On a CPU, it is 0.37 to 0.58 for unet_tiny and unet_cifar10
in float32 and bfloat16 (one thread of an EPYC 9004)."""

LAUNCH_SECONDS = 1e-5
"""Time in which PyTorch starts one operation and its backward pass."""

STEP_SECONDS = 0.003
"""Time of a step apart from the network and the optimizer: data, noise and Lightning."""

PARAMETER_TRAFFIC = 10
"""Reads and writes of each parameter by gradient norm, clipping, Adam and one average."""

LIBRARY_BYTES = 8e8
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


def estimate(module: TrainedModule, datamodule: ImageDataModule, trainer: Trainer, rates: Rates) -> Cost:
    """Estimate the cost of a run from the operations of the network, without a step.  rates: rates of the device.

    Raises any error of a network whose operations cannot be counted, see `count_operations`.
    """
    num_parts = trainer.accumulate_grad_batches
    size = max(1, datamodule.batch_size // (trainer.world_size * num_parts))
    operations = count_operations(module.network, example_inputs(module, datamodule), size)
    is_half, on_cpu = "16" in str(trainer.precision), trainer.strategy.root_device.type == "cpu"
    parameters = list(module.network.parameters())
    optimizer_bytes = PARAMETER_TRAFFIC * sum(parameter.nbytes for parameter in parameters)
    one_pass = pass_seconds(operations, rates, is_half=is_half, on_cpu=on_cpu)
    recomputes = any(getattr(part, "checkpointing", False) is True for part in module.network.modules())
    passes = num_parts * (1 + BACKWARD + recomputes)
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        memory=_memory(module, operations, is_half=is_half),
        seconds_per_step=passes * one_pass + optimizer_bytes / rates.bandwidth + STEP_SECONDS,
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
        evaluations = num_images * sampler.num_evaluations * (2 if doubled else 1) / trainer.world_size
        total += callback.every.count(first_step, trainer.max_steps) * evaluations * cost.seconds_per_image
    return total


def pass_seconds(operations: Operations, rates: Rates, *, is_half: bool, on_cpu: bool) -> float:
    """Return the duration of a forward pass: the time of products plus the time of reading and writing tensors."""
    # On a CPU, half-precision tensors save no time outside of products: casts take as much time as they save.
    traffic = operations.traffic * (0.5 if is_half and not on_cpu else 1.0)
    bandwidth = rates.bandwidth * BANDWIDTH_FRACTION["cpu" if on_cpu else "gpu"]
    busy, launches = operations.flops / rates.flops + traffic / bandwidth, operations.count * LAUNCH_SECONDS
    return busy + launches if on_cpu else max(busy, launches)  # a GPU computes while the next operation starts


def _memory(module: TrainedModule, operations: Operations, *, is_half: bool) -> float:
    """Return the peak memory of a rank in bytes: parameters, gradients, optimizer, averages, activations, libraries."""
    trained = sum(parameter.nbytes for parameter in module.network.parameters() if parameter.requires_grad)
    parameters = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    trained_copies = 1 + num_optimizer_states(module)  # gradients, and the states of the optimizer
    activations = operations.stored * (0.6 if is_half else 1.0)  # norms store float32 activations
    return float(parameters + trained_copies * trained) + (1 + TRANSIENT) * activations + LIBRARY_BYTES
