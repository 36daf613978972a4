"""Loading of checkpoints that another person may have written."""

from typing import Any, Self

from lightning import LightningModule


class WeightsOnlyModule(LightningModule):
    """A LightningModule whose method `load_from_checkpoint` executes no code in a checkpoint, also from a URL."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **options: Any) -> Self:
        """See `LightningModule.load_from_checkpoint`; `weights_only` is True unless it is given."""
        load = super().load_from_checkpoint
        module: Self = load(checkpoint_path, *arguments, **{"weights_only": True} | options)
        return module
