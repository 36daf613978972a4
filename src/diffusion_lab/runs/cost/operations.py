"""Count of the operations of a network, without computing anything, and the rates of a device."""

import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Operations:
    """One forward pass of a network for a batch.

    count: number of operations.  flops: floating-point operations of convolutions and matrix products.
    traffic: bytes of all inputs and outputs of the operations in float32.
    stored: bytes of the activations in float32 that the backward pass needs.
    """

    count: int
    flops: int
    traffic: int
    stored: int


@dataclass(frozen=True)
class Rates:
    """Rates of a device: floating-point operations per second of a matrix product, and bytes per second of a copy."""

    flops: float
    bandwidth: float


def count_operations(network: nn.Module, inputs: tuple[Any, ...], batch_size: int) -> Operations:
    """Count the operations of one forward pass on tensors without data.

    inputs: arguments of the network for a batch of any size, tensors [B, ...] and a `Condition`.
    Raises any error of a network that cannot run without data, for example because its control flow reads values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    duplicate = _without_data(network, fake)
    with fake:
        own = {_storage_key(tensor) for tensor in itertools.chain(duplicate.parameters(), duplicate.buffers())}
        stored: dict[int, torch.UntypedStorage] = {}  # the references keep the keys unique

        def keep(tensor: Tensor) -> Tensor:
            stored[_storage_key(tensor)] = tensor.untyped_storage()
            return tensor

        rows = torch.zeros(batch_size, dtype=torch.int64)
        batch = [part[rows] if isinstance(part, Tensor) else part.select(rows) for part in inputs]
        counter = _Counter()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
            duplicate.forward(*batch)
        num_bytes = sum(storage.nbytes() for key, storage in stored.items() if key not in own)
    return Operations(counter.count, counter.flops, counter.traffic, num_bytes)


@functools.cache
def measure_rates(device: torch.device, precision: str) -> Rates:
    """Measure the rates of a device with a few short operations, in a few tens of milliseconds, once per process.

    A short operation often finishes before the operating system runs another program on its core. The fastest of
    several repetitions therefore depends little on what else the machine does. The matrix product runs on one thread,
    because threads that wait for each other do depend on it.
    precision: precision of the trainer, such as bf16-mixed.
    """
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = next((dtype for start, dtype in dtypes.items() if precision.startswith(start)), torch.float32)
    side, size = (512, 2**23) if device.type == "cpu" else (4096, 2**24)
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(size, device=device)
    product, target = torch.empty_like(a), torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        multiplied = _fastest(lambda: torch.matmul(a, b, out=product), device)
    finally:
        torch.set_num_threads(num_threads)
    num_products = num_threads if device.type == "cpu" else 1
    return Rates(num_products * 2 * side**3 / multiplied, 8 * size / copied)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts all operations that read or write data."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.flops = self.traffic = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.namespace == "prim" or func.is_view:
            return output
        tensors = (part for part in tree_iter((args, output)) if isinstance(part, Tensor))
        self.count += 1
        self.traffic += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


def _without_data(network: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """Return a copy of a network in training mode whose parameters and buffers have no data."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(fake.from_tensor(parameter.detach()), parameter.requires_grad)
        for parameter in network.parameters()
    }
    memo |= {id(buffer): fake.from_tensor(buffer) for buffer in network.buffers()}
    return copy.deepcopy(network, memo).train()


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _fastest(job: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of ten calls, after a warm-up call."""
    seconds = []
    for _ in range(11):
        started = time.perf_counter()
        job()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
