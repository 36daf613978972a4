"""Images -> bits per dimension, two ways: the variational bound of the chain, and the density of the flow."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.objectives import bound_term, prior_term
from diffusion_lab.process import GaussianProcess, TableSchedule, Variance
from diffusion_lab.samplers import Clipping, Noise, StaticClipping
from diffusion_lab.samplers.probability_flow import Circle, dormand_prince

LEVEL = 2 / 255
"""Distance of two grey levels of 8-bit images in [-1, 1]."""


@dataclass(frozen=True)
class VariationalBound:
    """The negative bound on the log-likelihood, term by term (Ho et al. 2020, eq. 5 and 13).

    clipping: of the estimates of x_0, as in the code of the papers.
    Raises ValueError unless the process has a table of steps.
    """

    process: GaussianProcess
    variance: Variance
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        if not isinstance(self.process.schedule, TableSchedule):
            raise ValueError(
                "the bound needs a schedule of steps (linear, cosine, ...), whose chain it bounds, got the continuous "
                f"{type(self.process.schedule).__name__}; the flow's likelihood serves every schedule."
            )

    name = "bits_bound"

    @property
    def num_terms(self) -> int:
        """T + 1."""
        return len(self.steps) + 1

    @property
    def steps(self) -> Tensor:
        """The times of all steps, growing: [T], float64."""
        schedule = self.process.schedule
        assert isinstance(schedule, TableSchedule)
        return schedule.steps

    @torch.no_grad()
    def __call__(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """L_0, L_1, ..., L_{T-1}, L_T of each image: [B, T + 1], bits per dimension, with one noise for each term.

        x_0: [B, C, H, W], 8-bit levels in [-1, 1].  Their sum over a row is the bound on that image.
        """
        terms = []
        for step in self.steps:
            t = step.expand(len(x_0))
            s = self.process.schedule.previous(t)
            x_t = self.process.q_sample(x_0, t, noise.draw())
            estimate = denoiser(x_t, t, condition)
            log_variance = self.variance.log_variance(self.process, s, t, like=x_0, output=estimate.variance_output)
            terms.append(bound_term(x_0, self.clipping(estimate.x_0), x_t, log_variance, s, t, self.process))
        return torch.stack([*terms, prior_term(x_0, self.process)], dim=1)


@dataclass(frozen=True)
class FlowLikelihood:
    """The likelihood by the change of variables along the probability flow (Song et al. 2021, section 4.3).

    The divergence is Hutchinson's estimate, with probes of -1 and 1 that stay fixed along the way. The flow ends at the
    schedule's smallest time, whose noise counts as none.
    rtol, atol: of the solver.  num_probes: whose estimates are averaged.
    """

    process: GaussianProcess
    rtol: float = 1e-5
    atol: float = 1e-5
    num_probes: int = 1

    name = "bits_flow"
    num_terms = 1

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol), ("num_probes", self.num_probes)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")

    def __call__(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Bits per dimension of 8-bit images, dequantised by uniform noise: [B, 1].  x_0: [B, C, H, W] in [-1, 1]."""
        between = LEVEL * (torch.special.ndtr(noise.draw()) - 0.5)
        probes = [noise.draw().sign() for _ in range(self.num_probes)]
        log_density = self.log_density(denoiser, x_0 + between, condition, probes)
        return -(log_density / x_0[0].numel() + math.log(LEVEL))[:, None] / math.log(2)

    def log_density(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, probes: list[Tensor]) -> Tensor:
        """Logarithm of the density at x_0 [B, C, H, W], in nats: [B], float64.  probes: each shaped as x_0."""
        circle, schedule = Circle(self.process), self.process.schedule
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        (start, end), (near, far) = circle.angle(ends).tolist(), circle.radius(ends).tolist()
        alpha = float(schedule.coefficients(ends)[0][0])
        shape, size = x_0.shape[1:], x_0[0].numel()

        def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
            at, rows = circle.time(angle), rows.to(state.device)
            with torch.enable_grad():
                z = state[:, :-1].view(-1, *shape).detach().requires_grad_()
                x_t = z * self.process.widen(circle.radius(at), z)
                velocity = circle.velocity(z, denoiser(x_t, at, condition.select(rows)).x_0, angle)
                divergence = torch.zeros(len(z), dtype=state.dtype, device=state.device)
                for probe in probes:
                    (pulled,) = torch.autograd.grad(velocity, z, probe[rows], retain_graph=True)
                    divergence += (pulled * probe[rows]).flatten(1).sum(dim=1) / len(probes)
            # In units of one dimension, so that the solver's tolerance means for it what it means for a pixel.
            return torch.cat([velocity.detach().flatten(1), divergence[:, None] / size], dim=1)

        z_near = (alpha / near * x_0).flatten(1)
        state = torch.cat([z_near, torch.zeros(len(x_0), 1, dtype=x_0.dtype, device=x_0.device)], dim=1)
        state = dormand_prince(slope, state, start, end, rtol=self.rtol, atol=self.atol).double()
        std = float(schedule.prior_std(ends[1])) / far
        prior = -(state[:, :-1] / std).square().sum(dim=1) / 2 - size * math.log(std * math.sqrt(2 * math.pi))
        log_density: Tensor = prior + size * (state[:, -1] + math.log(alpha / near))
        return log_density
