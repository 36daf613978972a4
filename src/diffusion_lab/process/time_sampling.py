"""Distributions from which the times for training are sampled."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusion_lab.contracts import Interface
from diffusion_lab.process.gaussian import GaussianProcess
from diffusion_lab.process.schedule_base import NoiseSchedule
from diffusion_lab.process.tables import TableSchedule


class TimeDraws(Protocol):
    """The random numbers of one training step from which times are sampled, for the images of this rank."""

    @property
    def positions(self) -> Sequence[int]:
        """Positions of the images in the global batch: [B]."""

    @property
    def batch_size(self) -> int:
        """Number of images in the global batch."""

    def times(self) -> Tensor:
        """Return one uniform number in [0, 1) per image: [B], float64."""

    def shared_time(self) -> Tensor:
        """Return one uniform number in [0, 1) that all images of the step share: [], float64."""


class TimeDistribution(Interface):
    """A distribution over times, with the loss weights that correct for it.

    Subclasses have the field `schedule`, whose times they sample.
    """

    @abstractmethod
    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        """Sample times [B], float64, and return them with their loss weights [B], float32."""

    def update(self, draws: TimeDraws, t: Tensor, loss: Tensor) -> None:
        """Record the losses [B] at the times [B]."""

    def finish_step(self, applied: Tensor | bool = True) -> None:
        """Update the distribution from the losses of all ranks. Call it on all ranks after each optimizer step.

        applied: whether the optimizer step was applied, bool [], equal on all ranks; the losses of a step that was not
            applied are discarded.
        """


@dataclass(frozen=True)
class _TimesOfSchedule(TimeDistribution):
    """Base of distributions with settings only.  schedule: noise schedule, or its process."""

    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", _schedule_of(self.schedule))


@dataclass(frozen=True)
class Uniform(_TimesOfSchedule):
    """The uniform distribution (Ho et al. 2020, algorithm 1).

    >>> from diffusion_lab import Draws, LinearSchedule, Uniform
    >>> t, weight = Uniform(LinearSchedule()).sample(Draws(seed=0, step=0, positions=range(4), batch_size=4))
    >>> t.shape, weight
    (torch.Size([4]), tensor([1., 1., 1., 1.]))
    """

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        return _unweighted(self.schedule.quantile(draws.times()))


@dataclass(frozen=True)
class Stratified(_TimesOfSchedule):
    """Uniform times, evenly spaced over the global batch from one shared offset (Kingma et al. 2021, appendix I.1).

    >>> from diffusion_lab import Draws, LinearSchedule, Stratified
    >>> t, _ = Stratified(LinearSchedule()).sample(Draws(seed=0, step=0, positions=range(4), batch_size=4))
    >>> t.sort().values.diff()
    tensor([0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        position = torch.tensor(draws.positions, dtype=torch.float64)
        return _unweighted(self.schedule.quantile((draws.shared_time() + position / draws.batch_size) % 1))


@dataclass(frozen=True)
class LogNormalSigma(_TimesOfSchedule):
    """log(sigma_t / alpha_t) ~ N(mean, std^2) (Karras et al. 2022, Table 1).

    mean, std: mean and standard deviation of log(sigma_t / alpha_t).  Raises ValueError unless std is above 0.

    >>> from diffusion_lab import Draws, EDMSchedule, LogNormalSigma
    >>> t, _ = LogNormalSigma(EDMSchedule()).sample(Draws(seed=0, step=0, positions=range(999), batch_size=999))
    >>> round(float(t.median()), 1)  # exp(-1.2)
    0.3
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_std(self.std)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        log_ratio = self.mean + self.std * _to_normal(draws.times())
        return _unweighted(self.schedule.at_log_snr(-2 * log_ratio))


@dataclass(frozen=True)
class LogitNormal(_TimesOfSchedule):
    """logit(u) ~ N(mean, std^2), where u in (0, 1) is the quantile of the time (Esser et al. 2024, eq. 19).

    mean, std: mean and standard deviation of logit(u).  Raises ValueError unless std is above 0.

    >>> from diffusion_lab import Draws, LogitNormal, RectifiedFlowSchedule
    >>> t, _ = LogitNormal(RectifiedFlowSchedule()).sample(Draws(seed=0, step=0, positions=range(999), batch_size=999))
    >>> round(float(t.median()), 1)
    0.5
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_std(self.std)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        u = (self.mean + self.std * _to_normal(draws.times())).sigmoid()
        return _unweighted(self.schedule.quantile(u))


class LossSecondMoment(TimeDistribution, nn.Module):
    """Importance sampling of times, p(t) proportional to sqrt(E[loss^2]) (Nichol & Dhariwal 2021, eq. 18).

    The distribution is uniform until every step has `num_kept` losses. The loss weights 1 / (T p(t)) leave the expected
    loss equal to that of uniform times. Every rank records the losses of all ranks in the order of the global batch, so
    that the history is identical on all ranks and for any world size. The history is part of the state_dict.

    schedule: discrete schedule.
    num_kept: number of most recent losses that are stored per step.
    uniform_share: fraction of uniformly sampled times, in (0, 1], so that no step is excluded forever.
    Raises ValueError for a continuous schedule, or if num_kept or uniform_share is out of range.

    >>> from diffusion_lab import Draws, LinearSchedule, LossSecondMoment
    >>> times, draws = LossSecondMoment(LinearSchedule(2), num_kept=1), Draws(0, 0, positions=[0, 1], batch_size=2)
    >>> times.update(draws, t=torch.tensor([0.5, 1.0]), loss=torch.tensor([3.0, 1.0]))
    >>> times.finish_step()
    >>> times.probabilities.round(decimals=2)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    kept: Tensor
    num_met: Tensor

    def __init__(self, schedule: NoiseSchedule, num_kept: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__()
        schedule = _schedule_of(schedule)
        if not isinstance(schedule, TableSchedule):
            raise ValueError(
                "`schedule` must have discrete steps for the times LossSecondMoment (times=loss_second_moment), got "
                f"{schedule}."
            )
        if num_kept < 1:
            raise ValueError(f"num_kept must be at least 1, got {num_kept}.")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be in (0, 1], got {uniform_share}.")
        self.schedule, self.num_kept, self.uniform_share = schedule, num_kept, uniform_share
        self.register_buffer("kept", torch.zeros(schedule.num_timesteps, num_kept, dtype=torch.float64))
        self.register_buffer("num_met", torch.zeros(schedule.num_timesteps, dtype=torch.int64))
        self._pending: list[Tensor] = []

    @property
    def probabilities(self) -> Tensor:
        """Probability of each step: [T], float64, with sum 1."""
        if int(self.num_met.min()) < self.num_kept:
            return torch.full_like(self.kept[:, 0], 1 / len(self.kept))
        root_mean_square = self.kept.square().mean(dim=1).sqrt()
        total, num_steps = root_mean_square.sum(), len(root_mean_square)
        learned = torch.where(total > 0, root_mean_square / total, 1 / num_steps)
        return (1 - self.uniform_share) * learned + self.uniform_share / num_steps

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        probabilities = self.probabilities.cpu()
        index = torch.searchsorted(probabilities.cumsum(0), draws.times(), right=True).clamp(max=len(probabilities) - 1)
        weight = 1 / (len(probabilities) * probabilities[index])
        return (index + 1).double() / len(probabilities), weight.float()

    def update(self, draws: TimeDraws, t: Tensor, loss: Tensor) -> None:
        position = torch.tensor(draws.positions, dtype=torch.float64)
        self._pending.append(torch.stack([position, t.double().cpu(), loss.detach().double().cpu()], dim=1))

    def finish_step(self, applied: Tensor | bool = True) -> None:
        pending, self._pending = self._pending, []
        if not pending or not bool(applied):
            return
        rows = _all_gather(torch.cat(pending), self.kept.device)
        rows = rows[rows[:, 2].isfinite()]  # one NaN or infinite loss would make all probabilities NaN
        kept, num_met = self.kept.cpu(), self.num_met.cpu()  # one copy in each direction instead of one per image
        index = self.schedule.network_time(rows[:, 1]).long().tolist()
        for k, loss in zip(index, rows[:, 2].tolist(), strict=True):
            kept[k, int(num_met[k]) % self.num_kept] = loss
            num_met[k] += 1
        self.kept.copy_(kept)
        self.num_met.copy_(num_met)


def _all_gather(rows: Tensor, device: torch.device) -> Tensor:
    """Concatenate the tensors `rows` of all ranks and sort the result by position. Call it on all ranks.

    rows: (position in the global batch, time, loss) of each image of this rank, [B, 3].
    Returns [B * world size, 3], on the CPU.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        own = rows.to(device)
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own)  # all ranks have the same number of images in a step
        rows = torch.cat(parts).cpu()
    return rows[rows[:, 0].argsort()]


def _unweighted(t: Tensor) -> tuple[Tensor, Tensor]:
    return t, torch.ones_like(t, dtype=torch.float32)


def _to_normal(u: Tensor) -> Tensor:
    """Convert uniform numbers in [0, 1) to standard normal numbers by the inverse of the normal CDF."""
    normal: Tensor = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    return normal


def _schedule_of(given: Any) -> NoiseSchedule:
    """Return a schedule, also if its process is given.  Raises ValueError for any other object."""
    return GaussianProcess.of(given, "schedule").schedule


def _require_std(std: float) -> None:
    if std <= 0:
        raise ValueError(f"std must be above 0, got {std}.")
