"""A noise schedule whose log-SNR falls linearly."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import TableSchedule


@dataclass(frozen=True)
class LinearLogSNRSchedule(TableSchedule):
    """alpha_bar = sigmoid(log-SNR), where the log-SNR of the steps falls linearly from `first` to `last`."""

    num_timesteps: int = 1000
    first: float = 9.0
    last: float = -9.0
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        alpha_bar = torch.linspace(self.first, self.last, self.num_timesteps, dtype=torch.float64).sigmoid()  # [T]
        return 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
