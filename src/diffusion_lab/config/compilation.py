"""Faster execution of networks: torch.compile and the channels_last memory format.

Results change by rounding only, except that a compiled network draws different random numbers for dropout.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError

if TYPE_CHECKING:
    from torch import nn

SETTINGS = ("compile", "channels_last")
"""Settings of conf/trainer that lightning.Trainer does not accept."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that replay CUDA graphs: each call overwrites the outputs of the previous call."""

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of torch.compile.  reduce-overhead helps with small batches, for which the GPU waits for kernel launches."""


@dataclass(frozen=True)
class Acceleration:
    """Settings for the faster execution of networks.

    compile: mode of torch.compile; True for the default mode, False for no compilation.
    channels_last: whether weights, and thus activations, have the channels_last memory format.
    """

    compile: bool | str = False
    channels_last: bool = False

    @classmethod
    def from_trainer(cls, trainer: DictConfig) -> "Acceleration":
        """Read trainer.compile and trainer.channels_last.  Raises UserError for values that are not accepted."""
        acceleration = cls(**{name: trainer[name] for name in SETTINGS if name in trainer})
        if not isinstance(acceleration.compile, bool) and acceleration.compile not in MODES:
            raise UserError(
                f"trainer.compile must be true, false or one of {', '.join(MODES)}, got {acceleration.compile}."
            )
        if not isinstance(acceleration.channels_last, bool):
            raise UserError(f"trainer.channels_last must be true or false, got {acceleration.channels_last}.")
        return acceleration

    def __call__(self, network: "nn.Module", backend: str = "inductor") -> None:
        """Set the memory format of a network and, if requested, let the first call compile the network.

        Names of parameters and buffers do not change.  backend: the backend of torch.compile.
        """
        self.apply_memory_format(network)
        if self.compile:
            _use_persistent_cache()
            mode = self.compile if isinstance(self.compile, str) and self.compile != "default" else None
            network.compile(backend=backend, mode=mode)

    def apply_memory_format(self, network: "nn.Module") -> None:
        """Set the memory format of the weights without compiling the network."""
        import torch

        if self.channels_last:
            network.to(memory_format=torch.channels_last)


def precision_name(trainer: DictConfig) -> str:
    """Return the name of a trainer's numerical precision: settings that round differently have different names."""
    acceleration = Acceleration.from_trainer(trainer)
    mode = acceleration.compile
    parts = [str(trainer.precision)]
    if acceleration.channels_last:
        parts.append("channels last")
    if mode:
        parts.append("compiled" if mode in (True, "default") else f"compiled for {mode}")
    return ", ".join(parts)


def without_acceleration(trainer: DictConfig) -> DictConfig:
    """Return the trainer settings that lightning.Trainer accepts: all except SETTINGS."""
    accepted: DictConfig = OmegaConf.masked_copy(trainer, [str(key) for key in trainer if key not in SETTINGS])
    return accepted


def _use_persistent_cache() -> None:
    """Store compiled code in the package's cache folder: torch's default folder is deleted when the machine reboots."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from diffusion_lab.paths import default_cache_folder

    # The import of torch may set the variable to torch's default folder; any other value is the user's choice.
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[CACHE_VARIABLE] = str(default_cache_folder() / "compiled")
