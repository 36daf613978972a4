"""How training draws its times."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion_lab.process.schedule_base import NoiseSchedule
from diffusion_lab.process.tables import TableSchedule


class TimeDraws(Protocol):
    """The part of a step's randomness that times need, for the images of this process."""

    @property
    def positions(self) -> Sequence[int]:
        """Where the images stand in the global batch: [B]."""

    @property
    def batch_size(self) -> int:
        """Of the global batch."""

    def times(self) -> Tensor:
        """One number in [0, 1) for each image: [B], float64."""

    def shared_time(self) -> Tensor:
        """One number in [0, 1) for the whole step: [], float64."""


class TimeDistribution(ABC):
    """A distribution over times, with the weights that its losses need."""

    @abstractmethod
    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        """Times [B], float64, and loss weights [B], float32."""

    def update(self, draws: TimeDraws, t: Tensor, loss: Tensor) -> None:  # noqa: B027 (most have nothing to learn)
        """Tells the distribution the losses [B] met at times [B]."""

    def finish_step(self, applied: Tensor | bool = True) -> None:  # noqa: B027
        """Learns from all losses of the step, those of other processes too: called by each once an optimiser step.

        applied: bool [], the same on every process; nothing is learned from a step that was not.
        """


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Every time alike (Ho et al. 2020, algorithm 1)."""

    schedule: NoiseSchedule

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        return _alike(self.schedule.quantile(draws.times()))


@dataclass(frozen=True)
class Stratified(TimeDistribution):
    """Uniform, spread evenly over the global batch by one shared offset (Kingma et al. 2021, appendix I.1)."""

    schedule: NoiseSchedule

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        position = torch.tensor(draws.positions, dtype=torch.float64)
        return _alike(self.schedule.quantile((draws.shared_time() + position / draws.batch_size) % 1))


@dataclass(frozen=True)
class LogNormalSigma(TimeDistribution):
    """log(sigma_t / alpha_t) ~ N(mean, std^2) (Karras et al. 2022, Table 1)."""

    schedule: NoiseSchedule
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _require_std(self.std)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        log_ratio = self.mean + self.std * _normal(draws.times())
        return _alike(self.schedule.at_log_snr(-2 * log_ratio))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """logit of the time's place in the schedule's range ~ N(mean, std^2) (Esser et al. 2024, eq. 19)."""

    schedule: NoiseSchedule
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _require_std(self.std)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        place = (self.mean + self.std * _normal(draws.times())).sigmoid()
        return _alike(self.schedule.quantile(place))


class LossSecondMoment(TimeDistribution, nn.Module):
    """Times as often as their losses are large, p(t) ~ sqrt(E[loss^2]) (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every step has been met `num_kept` times. The weights 1 / (T p(t)) keep the expected loss that of
    uniform times. All processes learn from all losses, in the order of the global batch, so that they hold the same
    history, however many they are; it is part of a module's state, and so of its checkpoints.

    num_kept: losses remembered for each step.  uniform_share: of the draws, so that no step is forgotten.
    """

    kept: Tensor
    num_met: Tensor

    def __init__(self, schedule: NoiseSchedule, num_kept: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__()
        if not isinstance(schedule, TableSchedule):
            raise ValueError(f"times must be drawn from a table of steps to learn from their losses, got {schedule}.")
        if num_kept < 1:
            raise ValueError(f"num_kept must be at least 1, got {num_kept}.")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be in (0, 1], got {uniform_share}.")
        self.schedule, self.num_kept, self.uniform_share = schedule, num_kept, uniform_share
        self.register_buffer("kept", torch.zeros(schedule.num_timesteps, num_kept, dtype=torch.float64))
        self.register_buffer("num_met", torch.zeros(schedule.num_timesteps, dtype=torch.int64))
        self._of_this_step: list[Tensor] = []

    @property
    def probabilities(self) -> Tensor:
        """Of each step: [T], float64, sum 1."""
        if int(self.num_met.min()) < self.num_kept:
            return torch.full_like(self.kept[:, 0], 1 / len(self.kept))
        size = self.kept.square().mean(dim=1).sqrt()
        total = size.sum()
        learned = torch.where(total > 0, size / total, 1 / len(size))
        return (1 - self.uniform_share) * learned + self.uniform_share / len(size)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        probabilities = self.probabilities.cpu()
        index = torch.searchsorted(probabilities.cumsum(0), draws.times(), right=True).clamp(max=len(probabilities) - 1)
        weight = 1 / (len(probabilities) * probabilities[index])
        return (index + 1).double() / len(probabilities), weight.float()

    def update(self, draws: TimeDraws, t: Tensor, loss: Tensor) -> None:
        position = torch.tensor(draws.positions, dtype=torch.float64)
        self._of_this_step.append(torch.stack([position, t.double().cpu(), loss.detach().double().cpu()], dim=1))

    def finish_step(self, applied: Tensor | bool = True) -> None:
        mine, self._of_this_step = self._of_this_step, []
        if not mine or not bool(applied):
            return
        rows = _from_all_processes(torch.cat(mine), self.kept.device)
        rows = rows[rows[:, 2].isfinite()]  # one loss that is no number would leave no probability a number
        kept, num_met = self.kept.cpu(), self.num_met.cpu()  # one copy each way, not one for every image
        index = self.schedule.network_time(rows[:, 1]).long().tolist()
        for k, loss in zip(index, rows[:, 2].tolist(), strict=True):
            kept[k, int(num_met[k]) % self.num_kept] = loss
            num_met[k] += 1
        self.kept.copy_(kept)
        self.num_met.copy_(num_met)


def _from_all_processes(rows: Tensor, device: torch.device) -> Tensor:
    """The rows [B, 3] of every process in the order of their first column, the same on each."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mine = rows.to(device)
        parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, mine)  # shares of a step are of one size
        rows = torch.cat(parts).cpu()
    return rows[rows[:, 0].argsort()]


def _alike(t: Tensor) -> tuple[Tensor, Tensor]:
    return t, torch.ones_like(t, dtype=torch.float32)


def _normal(u: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) as standard normal ones, by the inverse of the distribution."""
    normal: Tensor = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    return normal


def _require_std(std: float) -> None:
    if std <= 0:
        raise ValueError(f"std must be above 0, got {std}.")
