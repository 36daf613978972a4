"""Checks of a module that is built from a saved config, which may be damaged or from another person."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError

LARGE = 10**7
"""Number of parameters up to which a network is built without a comparison with its checkpoint: 40 MB."""


MANY = 10_000
"""Number of parts of a module up to which it is built without a comparison with its checkpoint: about a second."""


@contextmanager
def building_saved(checkpoint: Path, num_tensors: int) -> Iterator[None]:
    """Raise UserError for any error of a block that builds the module of a checkpoint from the saved config.

    Also raise it for a module with many more parts than a checkpoint with `num_tensors` tensors can have: a number of
    layers in a damaged config could otherwise take hours.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    most, parts = MANY + 20 * num_tensors, itertools.count(1)

    def count(*_: Any) -> None:
        if next(parts) > most:
            raise ValueError(f"it has more than {most:,} parts, but the checkpoint has {num_tensors:,} tensors")

    counting = register_module_module_registration_hook(count)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged config can lead to errors of any type
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the module of the run of {checkpoint} cannot be built from its config.yaml ({reason})."
        ) from error
    finally:
        counting.remove()


def require_similar_size(build: Callable[[], Any], state: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise UserError if a network is much larger than that of its checkpoint, before it needs memory.

    build: function that builds the network.  state: weights of the checkpoint, by name.
    """
    import torch

    try:
        with torch.device("meta"):
            network = build()
    except Exception:  # networks that compute with their buffers cannot be built without memory
        return
    num_built = sum(tensor.numel() for tensor in network.parameters())
    num_saved = sum(tensor.numel() for name, tensor in state.items() if name.startswith("network."))
    if num_built > LARGE and num_built > 2 * num_saved:
        raise UserError(
            f"the network in config.yaml must be that of {checkpoint}, which has {num_saved:,} weights, got one with "
            f"{num_built:,} parameters."
        )
