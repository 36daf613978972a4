"""Images -> bits per dimension: from the variational bound of the Markov chain, or from the probability flow ODE."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.contracts import added, require_instance
from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.objectives import bound_term, prior_term
from diffusion_lab.process import GaussianProcess, TableSchedule, Variance
from diffusion_lab.process.respaced import Respaced
from diffusion_lab.samplers import Clipping, Noise, StaticClipping, TimeGrid, UniformTimes
from diffusion_lab.samplers.probability_flow import STAGES, FlowCoordinates, dormand_prince

LEVEL = 2 / 255
"""Difference of adjacent gray levels of 8-bit images in [-1, 1]."""


@dataclass(frozen=True)
class VariationalBound:
    """Terms of the variational bound on the negative log-likelihood (Ho et al. 2020, eq. 5 and 13).

    clipping: clipping of the x_0 estimates; by default to [-1, 1], as in the code of Ho et al. 2020.
    num_steps: number of steps of a respaced chain, whose bound is computed instead (Nichol & Dhariwal 2021, code,
        image_nll.py with timestep_respacing); None selects the chain of all steps.
    time_grid: rule that chooses the times of the respaced chain; evenly spaced times if it is None. It is not used
        without num_steps.
    Raises ValueError unless the schedule has discrete steps, and if the time grid cannot choose num_steps of them.

    The respaced chain has separate variances, beta = 1 - alpha_bar_t / alpha_bar_s for adjacent chosen
    times s < t. All its terms, the first step's log-variance included, result from these variances as the terms of the
    full chain do from its variances. The network receives the chosen times themselves.
    """

    process: GaussianProcess
    variance: Variance
    clipping: Clipping = field(default_factory=StaticClipping)
    num_steps: int | None = added(None)
    time_grid: TimeGrid | None = added(None)  # noqa: RUF009 (a dataclass field)

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))
        require_instance(self.variance, Variance, "variance")
        if not isinstance(self.process.schedule, TableSchedule):
            raise ValueError(
                "`schedule` must have discrete steps (linear, cosine, ...) for the variational bound (metrics=nll or "
                f"bound), got the continuous {type(self.process.schedule).__name__}; use metrics=flow, which accepts "
                "all schedules."
            )
        self._set_time_grid()

    def _set_time_grid(self) -> None:
        """Remove the time grid if all steps are used, so that equal bounds have equal fields, and choose the times."""
        time_grid = None if self.num_steps is None else self.time_grid or UniformTimes()
        object.__setattr__(self, "time_grid", time_grid)
        if time_grid is not None:
            require_instance(time_grid, TimeGrid, "time_grid")
        if self.num_steps is not None and len(self.steps) == self._schedule.num_timesteps:
            object.__setattr__(self, "num_steps", None)
            object.__setattr__(self, "time_grid", None)

    choice = "bound"
    meaning = "negative log-likelihood in bits per dimension, from the variational bound"

    @property
    def name(self) -> str:
        """First part of the metric name, which contains the number of steps of a respaced chain."""
        return "bits_bound" if self.num_steps is None else f"bits_bound_{self.num_steps}_steps"

    @property
    def num_terms(self) -> int:
        """Number of terms: the number of steps of the chain + 1."""
        return len(self.steps) + 1

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations of the denoiser for one image: the number of steps of the chain."""
        return len(self.steps)

    @property
    def _schedule(self) -> TableSchedule:
        schedule = self.process.schedule
        assert isinstance(schedule, TableSchedule)
        return schedule

    @property
    def steps(self) -> Tensor:
        """Times of the steps of the chain in ascending order, float64: [T], or [num_steps] for a respaced chain."""
        if self.time_grid is None:
            return self._schedule.steps
        return torch.tensor(self.time_grid(self._schedule, self.num_steps), dtype=torch.float64).flip(0)

    @cached_property
    def _chain(self) -> GaussianProcess:
        """The process whose steps are those of the chain."""
        if self.num_steps is None:
            return self.process
        return GaussianProcess(Respaced(self.process.schedule, self.steps.flip(0).tolist()))

    @torch.no_grad()
    def __call__(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Return L_0, L_1, ..., L_{T-1}, L_T of each image: [B, T + 1], in bits per dimension.

        The sum of a row is the bound for one image. L_T is exact; each other term is estimated with one noise tensor.
        x_0: images with 8-bit levels, [B, C, H, W] in [-1, 1].
        """
        terms, chain = [], self._chain
        for time in self.steps:
            t = time.expand(len(x_0))
            s = chain.schedule.previous(t)
            x_t = chain.q_sample(x_0, t, noise.draw())
            estimate = denoiser(x_t, t, condition)
            log_variance = self.variance.log_variance(chain, s, t, like=x_0, output=estimate.variance_output)
            # The mean of p(x_s | x_t) is the output of a network that predicts it, see `Ancestral`.
            uses_output = not estimate.clip_mean and bool(self.process.is_one_step(s, t).all())
            x_0_estimate = estimate.x_0 if uses_output else self.clipping(estimate.x_0)
            terms.append(bound_term(x_0, x_0_estimate, x_t, log_variance, s, t, chain))
        return torch.stack([*terms, prior_term(x_0, chain)], dim=1)


@dataclass(frozen=True)
class FlowLikelihood:
    """Likelihood by the change of variables along the probability flow ODE (Song et al. 2021, section 4.3).

    The divergence is estimated with Hutchinson's estimator, whose random probe vectors of -1 and 1 are fixed along the
    trajectory. The trajectory ends at the smallest time of the schedule; the noise at this time is neglected.

    rtol, atol: relative and absolute tolerance of the solver.
    num_probes: number of probe vectors over which the estimate of the divergence is averaged.
    """

    process: GaussianProcess
    rtol: float = 1e-5
    atol: float = 1e-5
    num_probes: int = 1

    name = "bits_flow"
    choice = "flow"
    meaning = "negative log-likelihood in bits per dimension, from the probability flow"
    num_terms = 1
    has_adaptive_steps = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))
        for name, value in (("rtol", self.rtol), ("atol", self.atol), ("num_probes", self.num_probes)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")

    @property
    def num_evaluations(self) -> int:
        """Typical number of evaluations of the denoiser for one image, as for the sampler rk45.

        A U-Net of the quick start took 337 evaluations after 20 training steps, with the default tolerances.
        """
        return 2 + (len(STAGES) - 1) * math.ceil(4 * math.pow(self.rtol + self.atol, -0.2))

    @property
    def num_passes(self) -> int:
        """Typical duration for one image in forward passes: the backward pass of each probe takes twice as long."""
        return (1 + 2 * self.num_probes) * self.num_evaluations

    def __call__(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Return bits per dimension of 8-bit images, uniformly dequantized: [B, 1].

        x_0: images with 8-bit levels, [B, C, H, W] in [-1, 1].
        """
        dequantization = LEVEL * (torch.special.ndtr(noise.draw()) - 0.5)
        probes = [noise.draw().sign() for _ in range(self.num_probes)]
        log_density = self.log_density(denoiser, x_0 + dequantization, condition, probes)
        return -(log_density / x_0[0].numel() + math.log(LEVEL))[:, None] / math.log(2)

    def log_density(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, probes: list[Tensor]) -> Tensor:
        """Return the log-density at x_0 [B, C, H, W], in nats: [B], float64.

        probes: random vectors of Hutchinson's estimator, each with the shape of x_0.
        """
        flow, schedule = FlowCoordinates(self.process), self.process.schedule
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        (start, end), (near, far) = flow.angle(ends).tolist(), flow.radius(ends).tolist()
        alpha = float(schedule.coefficients(ends)[0][0])
        shape, size = x_0.shape[1:], x_0[0].numel()

        def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
            t, rows = flow.time(angle), rows.to(state.device)
            with torch.enable_grad():
                z = state[:, :-1].view(-1, *shape).detach().requires_grad_()
                x_t = z * self.process.widen(flow.radius(t), z)
                velocity = flow.velocity(z, denoiser(x_t, t, condition.select(rows)).x_0, angle)
                divergence = torch.zeros(len(z), dtype=state.dtype, device=state.device)
                for probe in probes:
                    (product,) = torch.autograd.grad(velocity, z, probe[rows], retain_graph=True)
                    divergence += (product * probe[rows]).flatten(1).sum(dim=1) / len(probes)
            # The division by the number of dimensions makes the tolerance equally strict for divergence and pixels.
            return torch.cat([velocity.detach().flatten(1), divergence[:, None] / size], dim=1)

        z_near = (alpha / near * x_0).flatten(1)
        state = torch.cat([z_near, torch.zeros(len(x_0), 1, dtype=x_0.dtype, device=x_0.device)], dim=1)
        state = dormand_prince(slope, state, start, end, rtol=self.rtol, atol=self.atol).double()
        std = float(schedule.prior_std(ends[1])) / far
        prior = -(state[:, :-1] / std).square().sum(dim=1) / 2 - size * math.log(std * math.sqrt(2 * math.pi))
        log_density: Tensor = prior + size * (state[:, -1] + math.log(alpha / near))
        return log_density
