"""The same networks, faster: compiled, or with their channels last in memory.

Numbers move by rounding, and where a compiled network drops out, by the other numbers that it draws for that.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError

if TYPE_CHECKING:
    from torch import nn

SETTINGS = ("compile", "channels_last")
"""Of a trainer, beside Lightning's own."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"

GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes that replay CUDA graphs, whose memory the next call takes again."""

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of torch.compile: reduce-overhead replays CUDA graphs, for batches so small that the GPU waits for its orders."""


@dataclass(frozen=True)
class Acceleration:
    """compile: true, or a mode of torch.compile.  channels_last: of the weights, and so of all that follows them."""

    compile: bool | str = False
    channels_last: bool = False

    @classmethod
    def of(cls, trainer: DictConfig) -> "Acceleration":
        """What trainer.compile and trainer.channels_last ask for.  Raises UserError for anything else."""
        asked = cls(**{name: trainer[name] for name in SETTINGS if name in trainer})
        if not isinstance(asked.compile, bool) and asked.compile not in MODES:
            raise UserError(f"trainer.compile must be true, false or one of {', '.join(MODES)}, got {asked.compile}")
        if not isinstance(asked.channels_last, bool):
            raise UserError(f"trainer.channels_last must be true or false, got {asked.channels_last}")
        return asked

    def __call__(self, network: "nn.Module", backend: str = "inductor") -> None:
        """Has the network compile itself when it is first called; its weights keep their names.

        backend: of torch.compile.
        """
        self.apply_memory_format(network)
        if self.compile:
            _keep_compiled()
            mode = self.compile if isinstance(self.compile, str) and self.compile != "default" else None
            network.compile(backend=backend, mode=mode)

    def apply_memory_format(self, network: "nn.Module") -> None:
        """Lays the weights out in memory, and compiles nothing."""
        import torch

        if self.channels_last:
            network.to(memory_format=torch.channels_last)


def precision_name(trainer: DictConfig) -> str:
    """Of numbers that come out of networks under this trainer: whoever rounds in another way has another one."""
    asked = Acceleration.of(trainer)
    words = [str(trainer.precision)]
    if asked.channels_last:
        words.append("channels last")
    if asked.compile:
        words.append("compiled" if asked.compile in (True, "default") else f"compiled for {asked.compile}")
    return ", ".join(words)


def without_acceleration(trainer: DictConfig) -> DictConfig:
    """The settings that Lightning's Trainer itself takes."""
    own: DictConfig = OmegaConf.masked_copy(trainer, [str(key) for key in trainer if key not in SETTINGS])
    return own


def _keep_compiled() -> None:
    """What was compiled once is there for the next run: torch's own place is emptied when the machine restarts."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from diffusion_lab.paths import default_cache_folder

    if os.environ.get(CACHE) in (None, default_cache_dir()):  # torch may write its own place there when it is imported
        os.environ[CACHE] = str(default_cache_folder().expanduser() / "compiled")
