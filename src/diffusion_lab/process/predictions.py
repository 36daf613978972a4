"""Prediction types: the training target of a network, and the conversion of its output to a clean image."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.contracts import Interface, added
from diffusion_lab.process.gaussian import GaussianProcess, multiplier, weighted_sum
from diffusion_lab.process.schedule_base import NoiseSchedule


@dataclass(frozen=True)
class Preconditioning:
    """Scaling around a network F: x_0 = c_skip x_t + c_out F(c_in x_t, c_noise) (Karras et al. 2022, eq. 7).

    Each coefficient is a tensor with one value per image, float64 [B], or a float that applies to all images.
    """

    c_in: Tensor | float
    c_noise: Tensor | float
    c_skip: Tensor | float
    c_out: Tensor | float

    def as_floats(self) -> "Preconditioning":
        """Return the coefficients of one time as floats, because arithmetic with tensors takes five times as long."""
        return Preconditioning(float(self.c_in), float(self.c_noise), float(self.c_skip), float(self.c_out))

    def inputs(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network inputs c_in x_t [B, C, H, W] and c_noise [B], with the device and dtype of x_t."""
        is_one = self.c_in == 1 if isinstance(self.c_in, float) else bool((self.c_in == 1).all())
        scaled = x_t if is_one else multiplier(self.c_in, x_t) * x_t
        if isinstance(self.c_noise, float):
            return scaled, x_t.new_full((len(x_t),), self.c_noise)
        return scaled, self.c_noise.to(x_t.device, x_t.dtype, non_blocking=x_t.is_cuda)

    def x_0(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Convert a network output to the clean image: [B, C, H, W]."""
        return weighted_sum(self.c_skip, x_t, self.c_out, output)

    def output(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Convert a clean image to the network output that represents it: [B, C, H, W]."""
        return (x_0 - multiplier(self.c_skip, x_t) * x_t) / multiplier(self.c_out, x_t)


class Prediction(Interface):
    """A linear combination of x_0 and noise as training target: on_x_0 x_0 + on_noise noise.

    Subclasses define the two weights, which depend on t alone. This class derives the inversion to x_0 and to noise,
    and the preconditioning.

    >>> from diffusion_lab import CosineSchedule, GaussianProcess, V
    >>> process, x_0, t = GaussianProcess(CosineSchedule()), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0.5])
    >>> x_t, target = process.q_sample(x_0, t, 2 * x_0), V().target(x_0, noise=2 * x_0, t=t, process=process)
    >>> V().to_x_0(target, x_t, t, process)  # the network outputs an estimate of the target
    tensor([[[[0.5000, 0.5000]]]])
    """

    clip_mean: bool = True
    """Whether the mean of a reverse step is computed from the clipped x_0, see `PosteriorMean`."""

    @abstractmethod
    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """Return on_x_0 and on_noise, each float64 [B]."""

    def require(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if the target is undefined, or does not determine x_0, at some time of the schedule."""

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """Return the training target of the network: [B, C, H, W].  x_0, noise: [B, C, H, W].  t: [B]."""
        on_x_0, on_noise = self.weights(t, process)
        return process.widen(on_x_0, x_0) * x_0 + process.widen(on_noise, noise) * noise

    def to_x_0(self, output: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """Convert a network output to the clean image: [B, C, H, W].  output, x_t: [B, C, H, W].  t: [B]."""
        return self.preconditioning(t, process).x_0(output, x_t)

    def to_noise(self, output: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """Convert a network output to the noise, for times with sigma_t above 0: [B, C, H, W]."""
        alpha_t, sigma_t = process.schedule.coefficients(t)
        on_x_0, on_noise = self.weights(t, process)
        determinant = on_noise * alpha_t - on_x_0 * sigma_t
        c_out, c_skip = process.widen(alpha_t / determinant, x_t), process.widen(-on_x_0 / determinant, x_t)
        return c_out * output + c_skip * x_t

    def preconditioning(self, t: Tensor, process: GaussianProcess) -> Preconditioning:
        """Return the four coefficients at t [B]."""
        alpha_t, sigma_t = process.schedule.coefficients(t)
        c_skip, c_out = _skip_and_out(alpha_t, sigma_t, *self.weights(t, process))
        return Preconditioning(self._c_in(alpha_t, sigma_t), process.schedule.network_time(t), c_skip, c_out)

    def error_ratio(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Return 1 / c_out^2, the squared error of the output divided by the squared error of x_0: float64 [B]."""
        _, c_out = _skip_and_out(*process.schedule.coefficients(t), *self.weights(t, process))
        return c_out**-2

    def _c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return torch.ones_like(alpha_t)


@dataclass(frozen=True)
class Epsilon(Prediction):
    """Prediction of the noise (Ho et al. 2020, eq. 12 and 15).

    >>> from diffusion_lab import Epsilon, GaussianProcess, RectifiedFlowSchedule
    >>> Epsilon().weights(torch.tensor([0.25]), GaussianProcess(RectifiedFlowSchedule()))  # of x_0 and noise
    (tensor([0.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return torch.zeros(t.shape, dtype=torch.float64), torch.ones(t.shape, dtype=torch.float64)

    def require(self, schedule: NoiseSchedule) -> None:
        _require_signal(schedule, "epsilon")


@dataclass(frozen=True)
class X0(Prediction):
    """Prediction of the clean image (Ho et al. 2020, section 3.2; Salimans & Ho 2022, section 4).

    >>> from diffusion_lab import X0, GaussianProcess, RectifiedFlowSchedule
    >>> X0().weights(torch.tensor([0.25]), GaussianProcess(RectifiedFlowSchedule()))  # of x_0 and noise
    (tensor([1.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return torch.ones(t.shape, dtype=torch.float64), torch.zeros(t.shape, dtype=torch.float64)


@dataclass(frozen=True)
class V(Prediction):
    """Prediction of v = alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, section 4 and appendix D).

    >>> from diffusion_lab import GaussianProcess, RectifiedFlowSchedule, V
    >>> V().weights(torch.tensor([0.25]), GaussianProcess(RectifiedFlowSchedule()))  # of x_0 and noise
    (tensor([-0.2500], dtype=torch.float64), tensor([0.7500], dtype=torch.float64))
    """

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        return -sigma_t, alpha_t


@dataclass(frozen=True)
class Score(Prediction):
    """Prediction of the score of q(x_t | x_0), -noise / sigma_t (Song & Ermon 2019, eq. 5).

    >>> from diffusion_lab import GaussianProcess, RectifiedFlowSchedule, Score
    >>> Score().weights(torch.tensor([0.25]), GaussianProcess(RectifiedFlowSchedule()))  # of x_0 and noise
    (tensor([0.], dtype=torch.float64), tensor([-4.], dtype=torch.float64))
    """

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        _, sigma_t = process.schedule.coefficients(t)
        return torch.zeros_like(sigma_t), -1 / sigma_t

    def require(self, schedule: NoiseSchedule) -> None:
        _require_signal(schedule, "score")
        if not float(schedule.coefficients(torch.tensor(schedule.t_min, dtype=torch.float64))[1]) > 0:
            raise ValueError(
                "`prediction` must not be score if the first step of the schedule adds no noise (the score is "
                "-noise / sigma_t), got score; use for example X0 (prediction=x_0)."
            )


@dataclass(frozen=True)
class FlowVelocity(Prediction):
    """Prediction of noise - x_0, the velocity of the straight line from image to noise (Liu et al. 2023, eq. 1).

    >>> from diffusion_lab import FlowVelocity, GaussianProcess, RectifiedFlowSchedule
    >>> FlowVelocity().weights(torch.tensor([0.25]), GaussianProcess(RectifiedFlowSchedule()))  # of x_0 and noise
    (tensor([-1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        return -torch.ones(t.shape, dtype=torch.float64), torch.ones(t.shape, dtype=torch.float64)


@dataclass(frozen=True)
class PosteriorMean(Prediction):
    """Prediction of the mean of q(x_s | x_t, x_0) (Ho et al. 2020, Table 2, "mu tilde prediction").

    s is the time one step before t. The schedule must have discrete steps.
    clip_mean: whether ancestral sampling with clipping computes the mean from the clipped x_0 instead of using the
        output of the network unchanged. The code of Nichol & Dhariwal (2021), PREVIOUS_X, uses the output. Steps of a
        respaced chain that do not end one step before t are always computed from the clipped x_0.

    >>> from diffusion_lab import CustomSchedule, GaussianProcess, PosteriorMean
    >>> PosteriorMean().weights(torch.tensor([0.5]), GaussianProcess(CustomSchedule([0.1, 0.5])))
    (tensor([1.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """

    clip_mean: bool = added(default=True)

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        on_x_0, on_x_t, _ = process.posterior_coefficients(process.schedule.previous(t), t)
        return on_x_0 + on_x_t * alpha_t, on_x_t * sigma_t

    def require(self, schedule: NoiseSchedule) -> None:
        schedule.previous(torch.tensor(schedule.t_max, dtype=torch.float64))


@dataclass(frozen=True)
class EDMDenoiser(Prediction):
    """Prediction of a unit-variance mixture of x_0 and noise with minimal c_out (Karras et al. 2022, Table 1).

    The formulas of the paper are applied to sigma_t / alpha_t, which extends them to any schedule.
    sigma_data: standard deviation of the pixels of the images.  Raises ValueError unless it is above 0.

    >>> from diffusion_lab import EDMDenoiser, EDMSchedule, GaussianProcess
    >>> scaling = EDMDenoiser(0.5).preconditioning(torch.tensor([0.5]), GaussianProcess(EDMSchedule()))
    >>> scaling.c_skip, scaling.c_out  # at a noise level of sigma_data: 1/2 and sigma_data / sqrt(2)
    (tensor([0.5000], dtype=torch.float64), tensor([0.3536], dtype=torch.float64))
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be above 0, got {self.sigma_data}.")

    def weights(self, t: Tensor, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        # These weights follow from c_skip and c_out of the paper, solved for the target.
        scale = self._c_in(alpha_t, sigma_t)
        return sigma_t / self.sigma_data * scale, -alpha_t * self.sigma_data * scale

    def _c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return (sigma_t**2 + self.sigma_data**2 * alpha_t**2).rsqrt()


def _skip_and_out(alpha_t: Tensor, sigma_t: Tensor, on_x_0: Tensor, on_noise: Tensor) -> tuple[Tensor, Tensor]:
    # Target and x_t are two linear equations for x_0 and noise. They are linearly dependent if the first step adds no
    # noise and the target is a multiple of x_0. Then x_0 is the output divided by on_x_0.
    determinant = on_x_0 * sigma_t - on_noise * alpha_t
    solvable = determinant != 0
    c_out = torch.where(solvable, sigma_t / determinant, 1 / on_x_0)
    return torch.where(solvable, -on_noise / determinant, 0.0), c_out


def _require_signal(schedule: NoiseSchedule, name: str) -> None:
    if schedule.remaining_signal == 0:
        raise ValueError(
            f"`prediction` must determine x_0 at the last step of {type(schedule).__name__}, whose last alpha is 0 "
            f"(x_t is pure noise at this step), got {name}; use for example X0 or V (prediction=x_0 or v)."
        )
