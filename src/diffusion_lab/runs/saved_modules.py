"""Checks of a module that is built from a saved config, which may be damaged or from another person."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError

LARGE = 10**7
"""Number of parameters up to which a network is built without a comparison with its checkpoint: 40 MB."""


@contextmanager
def building_saved(checkpoint: Path) -> Iterator[None]:
    """Raise UserError for any error of a block that builds the module of a checkpoint from the saved config."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged config can lead to errors of any type
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the module of the run of {checkpoint} cannot be built from its config.yaml ({reason})."
        ) from error


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
