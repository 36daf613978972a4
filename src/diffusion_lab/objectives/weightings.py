"""Loss weights of the squared error of x_0 at each noise level.

`Denoising` converts them to weights of the squared error of the network output.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.contracts import Interface


class Weighting(Interface):
    """A function from the signal-to-noise ratio alpha_t^2 / sigma_t^2 to the weight of the squared error of x_0."""

    @abstractmethod
    def __call__(self, snr: Tensor) -> Tensor:
        """Return the weights: [B], float64.  snr: [B], float64, in [0, infinity]."""


def unweighted() -> None:
    """Return None: the squared error of the prediction has weight 1 at all noise levels."""


@dataclass(frozen=True)
class Constant(Weighting):
    """Weight 1 for x_0 at all noise levels.

    >>> from diffusion_lab import Constant
    >>> Constant()(torch.tensor([0.5, 10.0]))
    tensor([1., 1.])
    """

    def __call__(self, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) (Hang et al. 2023, section 3.3).

    gamma: largest weight.  Raises ValueError unless it is above 0.

    >>> from diffusion_lab import MinSNR
    >>> MinSNR()(torch.tensor([0.5, 10.0]))
    tensor([0.5000, 5.0000])
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _require_positive("gamma", self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """SNR gamma / (SNR + gamma): min-SNR without its corner (Crowson et al. 2024, section 3.3).

    gamma: upper limit of the weights.  Raises ValueError unless it is above 0.

    >>> from diffusion_lab import SoftMinSNR
    >>> SoftMinSNR()(torch.tensor([0.5, 10.0]))
    tensor([0.4444, 2.8571])
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        _require_positive("gamma", self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        return 1 / (1 / snr + 1 / self.gamma)


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """max(SNR, 1) (Salimans & Ho 2022, section 4).

    >>> from diffusion_lab import TruncatedSNR
    >>> TruncatedSNR()(torch.tensor([0.5, 10.0]))
    tensor([ 1., 10.])
    """

    def __call__(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1)


@dataclass(frozen=True)
class P2(Weighting):
    """SNR / (k + SNR)^gamma: smaller weights at low noise, where the content is visible (Choi et al. 2022, eq. 8).

    k: SNR up to which the weights grow like the SNR.  gamma: strength of the reduction; 0 gives the weights SNR.
    Raises ValueError unless k is above 0 and gamma is at least 0.

    >>> from diffusion_lab import P2
    >>> P2()(torch.tensor([0.5, 10.0]))
    tensor([0.3333, 0.9091])
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("k", self.k)
        if self.gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}.")

    def __call__(self, snr: Tensor) -> Tensor:
        # These are two forms of the same formula. The second form is finite if the SNR is infinite.
        high_snr = snr ** (1 - self.gamma) / (self.k / snr + 1) ** self.gamma
        return torch.where(snr < 1, snr / (self.k + snr) ** self.gamma, high_snr)


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """SNR + 1 / sigma_data^2, which gives the squared error of an EDM output weight 1 (Karras et al. 2022, Table 1).

    sigma_data: standard deviation of the pixels of the images.  Raises ValueError unless it is above 0.

    >>> from diffusion_lab import EDMWeighting
    >>> EDMWeighting()(torch.tensor([0.5, 10.0]))
    tensor([ 4.5000, 14.0000])
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("sigma_data", self.sigma_data)

    def __call__(self, snr: Tensor) -> Tensor:
        return snr + self.sigma_data**-2


def _require_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
