"""Transfer of tensors from the data loading workers to the training process: shared memory or a pipe.

torch moves each tensor through /dev/shm, and waits forever for a batch that does not fit: containers often have 64 MB.
"""

import os

import numpy as np
import torch
from torch import Tensor

SHARED_MEMORY = "/dev/shm"

PIPE_BYTES = 2**18
"""Size up to which a tensor is sent through the pipe, which is faster than to open a file in shared memory."""

RESERVED_BYTES = 2**23
"""Free space that is left in shared memory for other users, such as the ranks of a run."""


def sent(tensor: Tensor) -> Tensor | np.ndarray:
    """Return a tensor in shared memory for the training process, or an array for the pipe if the tensor does not fit.

    Call it in the worker: torch itself would allocate the memory in a thread, whose error nobody receives.
    """
    if tensor.nbytes <= PIPE_BYTES or not _fits(tensor.nbytes):
        return tensor.numpy()
    try:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError):  # another worker took the memory first
        return tensor.numpy()
    return tensor


def received(value: Tensor | np.ndarray) -> Tensor:
    """Return what `sent` returned in a worker as a tensor."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _fits(num_bytes: int) -> bool:
    try:
        memory = os.statvfs(SHARED_MEMORY)
    except OSError:  # another operating system: torch chooses the place
        return True
    return memory.f_bavail * memory.f_frsize >= num_bytes + RESERVED_BYTES
