"""What a network's output means: its training target, and the clean image that it stands for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process.gaussian import GaussianProcess
from diffusion_lab.process.schedule_base import NoiseSchedule


@dataclass(frozen=True)
class Preconditioning:
    """What surrounds a network F: x_0 = c_skip x_t + c_out F(c_in x_t, c_noise) (Karras et al. 2022, eq. 7).

    Each float64 [B].
    """

    c_in: Tensor
    c_noise: Tensor
    c_skip: Tensor
    c_out: Tensor

    def inputs(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given: c_in x_t [B, C, H, W] and c_noise [B], on the device and in the dtype of x_t."""
        scaled = x_t if bool((self.c_in == 1).all()) else GaussianProcess.widen(self.c_in, x_t) * x_t
        return scaled, self.c_noise.to(x_t.device, x_t.dtype, non_blocking=x_t.is_cuda)

    def x_0(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The clean image that an answer stands for: [B, C, H, W]."""
        return GaussianProcess.widen(self.c_skip, x_t) * x_t + GaussianProcess.widen(self.c_out, x_t) * output

    def output(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """The answer that stands for a clean image: [B, C, H, W]."""
        return (x_0 - GaussianProcess.widen(self.c_skip, x_t) * x_t) / GaussianProcess.widen(self.c_out, x_t)


class Prediction(ABC):
    """A linear view of (x_0, noise): the target is on_x_0 x_0 + on_noise noise, with weights that depend on t alone.

    All that follows, the way back to x_0 and the preconditioning that it is, is derived here, once for all.
    """

    @abstractmethod
    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """on_x_0 and on_noise, float64 [B]."""

    def require(self, schedule: NoiseSchedule) -> None:  # noqa: B027 (most suit every schedule, and say nothing)
        """Raises ValueError where no network can answer this for all times of the schedule."""

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """What the network should answer.  x_0, noise: [B, C, H, W].  t: [B].  Returns [B, C, H, W]."""
        on_x_0, on_noise = self.weights(t, process)
        return process.widen(on_x_0, x_0) * x_0 + process.widen(on_noise, noise) * noise

    def to_x_0(self, output: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """The clean image that an answer stands for.  output, x_t: [B, C, H, W].  t: [B].  Returns [B, C, H, W]."""
        return self.preconditioning(t, process).x_0(output, x_t)

    def to_noise(self, output: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """The noise that an answer stands for; for times with noise in them."""
        alpha_t, sigma_t = process.schedule.coefficients(t)
        on_x_0, on_noise = self.weights(t, process)
        determinant = on_noise * alpha_t - on_x_0 * sigma_t
        c_out, c_skip = process.widen(alpha_t / determinant, x_t), process.widen(-on_x_0 / determinant, x_t)
        return c_out * output + c_skip * x_t

    def preconditioning(self, t: Tensor, process: GaussianProcess) -> Preconditioning:
        """The four coefficients at t [B]."""
        alpha_t, sigma_t = process.schedule.coefficients(t)
        on_x_0, on_noise = self.weights(t, process)
        # Two equations, target and x_t, for two unknowns, x_0 and noise. Where they are one (a first step that adds no
        # noise, seen by a prediction that is a multiple of x_0) the answer itself is all there is.
        determinant = on_x_0 * sigma_t - on_noise * alpha_t
        solvable = determinant != 0
        c_out = torch.where(solvable, sigma_t / determinant, 1 / on_x_0)
        c_skip = torch.where(solvable, -on_noise / determinant, 0.0)
        return Preconditioning(self._c_in(alpha_t, sigma_t), process.schedule.network_time(t), c_skip, c_out)

    def error_ratio(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """A squared error of the output for each squared error of x_0 that it makes: 1 / c_out^2, float64 [B]."""
        return self.preconditioning(t, process).c_out ** -2

    def _c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return torch.ones_like(alpha_t)


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (Ho et al. 2020, eq. 12 and 15)."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return torch.zeros(t.shape, dtype=torch.float64), torch.ones(t.shape, dtype=torch.float64)

    def require(self, schedule: NoiseSchedule) -> None:
        _require_signal(schedule, "epsilon")


@dataclass(frozen=True)
class X0(Prediction):
    """The clean image (Ho et al. 2020, section 3.2; Salimans & Ho 2022, section 4)."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return torch.ones(t.shape, dtype=torch.float64), torch.zeros(t.shape, dtype=torch.float64)


@dataclass(frozen=True)
class V(Prediction):
    """v = alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, section 4 and appendix D)."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        return -sigma_t, alpha_t


@dataclass(frozen=True)
class Score(Prediction):
    """The score of q(x_t | x_0), -noise / sigma_t (Song & Ermon 2019, eq. 5)."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        _, sigma_t = process.schedule.coefficients(t)
        return torch.zeros_like(sigma_t), -1 / sigma_t

    def require(self, schedule: NoiseSchedule) -> None:
        _require_signal(schedule, "score")
        if not float(schedule.coefficients(torch.tensor(schedule.t_min, dtype=torch.float64))[1]) > 0:
            raise ValueError("prediction must not be score for a schedule whose first step adds no noise.")


@dataclass(frozen=True)
class FlowVelocity(Prediction):
    """noise - x_0, the velocity of the straight line from image to noise (Liu et al. 2023, eq. 1)."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return -torch.ones(t.shape, dtype=torch.float64), torch.ones(t.shape, dtype=torch.float64)


@dataclass(frozen=True)
class PosteriorMean(Prediction):
    """The mean of q(x_s | x_t, x_0), s one step before t (Ho et al. 2020, Table 2, "mu tilde prediction")."""

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        on_x_0, on_x_t, _ = process.posterior_coefficients(process.schedule.previous(t), t)
        return on_x_0 + on_x_t * alpha_t, on_x_t * sigma_t

    def require(self, schedule: NoiseSchedule) -> None:
        schedule.previous(torch.tensor(schedule.t_max, dtype=torch.float64))


@dataclass(frozen=True)
class EDMDenoiser(Prediction):
    """A unit-variance mixture of x_0 and noise that amplifies the network's errors least (Karras et al. 2022, Table 1).

    For any schedule, by the paper's formulas for sigma_t / alpha_t.  sigma_data: standard deviation of the images' pixels.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be above 0, got {self.sigma_data}.")

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        # c_skip and c_out of the paper solved for the target: both x_0 and noise over their standard deviations, crosswise.
        scale = self._c_in(alpha_t, sigma_t)
        return sigma_t / self.sigma_data * scale, -alpha_t * self.sigma_data * scale

    def _c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return (sigma_t**2 + self.sigma_data**2 * alpha_t**2).rsqrt()


def _require_signal(schedule: NoiseSchedule, name: str) -> None:
    if schedule.remaining_signal == 0:
        raise ValueError(
            f"prediction must be x_0 or v for {type(schedule).__name__}, whose last alpha is 0 "
            f"(the noisy image says nothing of the clean one there), got {name}."
        )
