"""The forms in which `DiffusionModule` takes its averages, and a note if they continue with other decays."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from diffusion_lab.contracts import described
from diffusion_lab.ema.averages import EMA, Decay

logger = logging.getLogger(__name__)


def as_ema(given: Callable[[nn.Module], EMA] | EMA | Decay, network: nn.Module) -> EMA:
    """Return the averages of a network, see `DiffusionModule`.  Raises ValueError for those of another network."""
    ema: Any = EMA(network, {"main": given}) if isinstance(given, Decay) else given
    if callable(ema) and not isinstance(ema, EMA):
        ema = ema(network)
    if not isinstance(ema, EMA):
        raise ValueError(
            "`ema` must be a Decay, such as ConstantDecay(0.999), an EMA, such as "
            'EMA(network, {"main": ConstantDecay(0.999)}), or a function from a network to its EMA, got '
            f"{described(given)}."
        )
    if not ema.may_average(network):
        raise ValueError("`ema` must be the EMA of the network of the module, got an EMA of another network.")
    return ema


def describe_decays(ema: EMA) -> dict[str, str]:
    """Return the decay of each average as text, for checkpoints."""
    return {name: repr(decay) for name, decay in ema.decays.items()}


@rank_zero_only
def note_other_decays(saved: Mapping[str, str] | None, ema: EMA) -> None:
    """Log the averages that were saved with another decay than they have now.

    saved: result of `describe_decays` in a checkpoint; None for a checkpoint without it.
    """
    for name, decay in describe_decays(ema).items():
        if saved and saved.get(name, decay) != decay:
            message = "the average `%s` of the checkpoint was computed with %s and continues with %s."
            logger.warning(message, name, saved[name], decay)
