"""Importance sampling of times on one rank and on several ranks."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import CosineSchedule, EDMSchedule, LinearSchedule, LossSecondMoment
from diffusion_lab.randomness import Draws
from support.ranks import run_on_ranks

T = 8
SCHEDULE = LinearSchedule(T)


def record(times: LossSecondMoment, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Record the losses of one optimizer step at the given schedule steps."""
    draws = Draws(0, 0, range(len(steps)), len(steps))
    times.update(draws, torch.tensor(steps).double() / T, torch.tensor(losses))
    times.finish_step()


def record_every_step(times: LossSecondMoment, rounds: int, seed: int = 0) -> Tensor:
    """Record random losses at all schedule steps and return them: [T, rounds]."""
    losses = torch.rand(T, rounds, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for k in range(rounds):
        record(times, range(1, T + 1), losses[:, k].tolist())
    return losses


def test_times_are_uniform_until_every_step_has_num_kept_losses() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3)
    record_every_step(times, 2)
    record(times, range(1, T), [5.0] * (T - 1))
    for _ in range(4):  # more losses than num_kept for two of the steps
        record(times, [1, 2], [9.0, 7.0])
    assert times.probabilities.tolist() == [1 / T] * T
    t, weight = times.sample(Draws(0, 0, range(30), 30))
    assert weight.tolist() == [1.0] * 30
    assert set((t * T).tolist()) <= set(range(1, T + 1))
    record(times, [T], [5.0])
    assert float(times.probabilities.max() - times.probabilities.min()) > 0.01


@pytest.mark.parametrize("uniform_share", [0.001, 0.3, 1.0])
def test_probabilities_are_then_proportional_to_the_root_mean_square_loss(uniform_share: float) -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3, uniform_share=uniform_share)
    size = record_every_step(times, 3).square().mean(dim=1).sqrt()
    expected = (1 - uniform_share) * size / size.sum() + uniform_share / T  # Nichol & Dhariwal (2021), eq. 18, code
    torch.testing.assert_close(times.probabilities, expected, rtol=1e-7, atol=0)


def test_only_the_last_losses_are_stored() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3, uniform_share=1e-9)
    size = record_every_step(times, 8)[:, -3:].square().mean(dim=1).sqrt()
    torch.testing.assert_close(times.probabilities, size / size.sum(), rtol=1e-7, atol=0)


def test_times_are_uniform_if_all_losses_are_0() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=1)
    record(times, range(1, T + 1), [0.0] * T)
    assert times.probabilities.tolist() == pytest.approx([1 / T] * T)


def test_a_step_with_loss_0_is_still_sampled() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=1, uniform_share=0.08)
    record(times, range(1, T + 1), [0.0, *[1.0] * (T - 1)])
    assert float(times.probabilities[0]) == pytest.approx(0.01)


@given(st.integers(0, 2**32))
def test_weighted_losses_have_the_expectation_of_uniform_times(seed: int) -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=2)
    record_every_step(times, 2, seed)
    loss = torch.rand(T, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    probabilities = times.probabilities
    numbers = FixedNumbers(probabilities.cumsum(0) - probabilities / 2)  # one number per schedule step
    t, weight = times.sample(numbers)
    assert (t * T).tolist() == list(range(1, T + 1))
    assert weight.dtype == torch.float32
    assert float((probabilities * weight * loss).sum()) == pytest.approx(float(loss.mean()), rel=1e-6)


def test_times_are_sampled_with_their_probabilities() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=2)
    record_every_step(times, 2)
    t, _ = times.sample(FixedNumbers((torch.arange(100_000).double() + 0.5) / 100_000))
    assert t.dtype == torch.float64
    frequency = torch.bincount((t * T).round().long(), minlength=T + 1)[1:] / 100_000
    torch.testing.assert_close(frequency, times.probabilities.float(), rtol=0, atol=2e-5)
    ends, _ = times.sample(FixedNumbers(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)))
    assert ends.tolist() == [1 / T, 1.0]
    # The cumulative sum of ten times 0.1 is 1 - 2^-53 in float64, which the largest uniform number reaches.
    rounded, _ = LossSecondMoment(LinearSchedule(10)).sample(FixedNumbers(ends.new_tensor([1 - 2**-53])))
    assert rounded.tolist() == [1.0]


@given(st.permutations(range(10)), st.integers(1, 9))
def test_the_history_does_not_depend_on_the_split_of_a_step(positions: list[int], cut: int) -> None:
    steps, losses = [1, 1, 1, 2, 3, 1, 5, 8, 8, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    whole, split = LossSecondMoment(SCHEDULE, num_kept=3), LossSecondMoment(SCHEDULE, num_kept=3)
    record(whole, steps, losses)
    for part in (positions[:cut], positions[cut:]):
        t, loss = torch.tensor([steps[k] for k in part]).double() / T, torch.tensor([losses[k] for k in part])
        split.update(Draws(0, 0, part, batch_size=10), t, loss)
    split.finish_step()
    assert torch.equal(split.kept, whole.kept)
    assert split.num_met.tolist() == whole.num_met.tolist() == [5, 1, 1, 0, 1, 0, 0, 2]
    # Of the five losses of this schedule step, the fourth and the fifth replace the first and the second.
    assert split.kept[0].tolist() == pytest.approx([0.6, 1.0, 0.3])


def test_losses_are_stored_once_when_the_step_is_finished() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=2)
    draws = Draws(0, 0, range(2), 2)
    times.finish_step()
    times.update(draws, torch.tensor([0.125, 1.0]), torch.tensor([3.0, 4.0], requires_grad=True))
    assert int(times.num_met.sum()) == 0
    times.finish_step()
    times.finish_step()
    assert times.num_met.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert times.kept[:, 0].tolist() == [3.0, 0, 0, 0, 0, 0, 0, 4.0]
    assert not times.kept.requires_grad


def test_the_history_is_restored_from_the_state_dict() -> None:
    whole, first, resumed = (LossSecondMoment(SCHEDULE, num_kept=2) for _ in range(3))
    record_every_step(whole, 3)
    record_every_step(first, 3)
    assert set(first.state_dict()) == {"kept", "num_met"}
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.probabilities, whole.probabilities)
    for times in (whole, resumed):
        record(times, [2, 5, 2], [9.0, 7.0, 8.0])
    assert torch.equal(resumed.kept, whole.kept)
    assert torch.equal(resumed.probabilities, whole.probabilities)


def test_times_rounded_to_float32_are_assigned_to_their_step() -> None:
    times = LossSecondMoment(CosineSchedule(4000), num_kept=1)
    times.update(Draws(0, 0, range(4000), 4000), CosineSchedule(4000).steps.float(), torch.arange(4000.0))
    times.finish_step()
    assert times.kept[:, 0].tolist() == list(range(4000))


def _train(shards: list[list[int]]) -> dict[str, Tensor]:
    times, shard = LossSecondMoment(SCHEDULE, num_kept=3), shards[torch.distributed.get_rank()]
    for step in range(6):
        losses, steps = _global_batch(step)
        for batch in (shard[:4], shard[4:]):  # two accumulated batches
            times.update(Draws(0, step, batch, batch_size=16), steps[batch] / T, losses[batch])
        times.finish_step()
    return times.state_dict()


def _global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Return losses and schedule steps of 16 images, with each schedule step twice."""
    generator = torch.Generator().manual_seed(step)
    return torch.rand(16, generator=generator), (torch.randperm(16, generator=generator) % T + 1).double()


def test_two_ranks_have_the_history_of_one(tmp_path: Path) -> None:
    shards = [[0, 3, 4, 7, 8, 11, 12, 15], [1, 2, 5, 6, 9, 10, 13, 14]]
    states = run_on_ranks(2, _train, tmp_path, shards)
    alone = LossSecondMoment(SCHEDULE, num_kept=3)
    for step in range(6):
        losses, steps = _global_batch(step)
        alone.update(Draws(0, step, range(16), batch_size=16), steps / T, losses)
        alone.finish_step()
    for state in states:
        together = LossSecondMoment(SCHEDULE, num_kept=3)
        together.load_state_dict(state)
        assert together.num_met.tolist() == [12] * T
        assert torch.equal(together.kept, alone.kept)
        assert torch.equal(together.probabilities, alone.probabilities)


def test_invalid_settings_are_rejected() -> None:
    for schedule in (EDMSchedule(), SCHEDULE.continuous):
        with pytest.raises(ValueError, match=r"`schedule` must have discrete .* times LossSecondMoment .*, got"):
            LossSecondMoment(schedule)
    for num_kept in (0, -1):
        with pytest.raises(ValueError, match=f"num_kept must be at least 1, got {num_kept}"):
            LossSecondMoment(SCHEDULE, num_kept=num_kept)
    for uniform_share in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"uniform_share must be in \(0, 1\], got {uniform_share}"):
            LossSecondMoment(SCHEDULE, uniform_share=uniform_share)


class FixedNumbers(Draws):
    """Given numbers instead of random ones."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__(0, 0, range(len(numbers)), len(numbers))
        self.numbers = numbers

    def times(self) -> Tensor:
        return self.numbers


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_discarded(loss: float) -> None:
    times = LossSecondMoment(CosineSchedule(4), num_kept=1)
    draws = Draws(seed=0, step=0, positions=range(5), batch_size=5)
    times.update(draws, torch.tensor([1, 2, 3, 4, 4]).double() / 4, torch.tensor([1.0, 1.0, 1.0, 1.0, loss]))
    times.finish_step()
    assert times.probabilities.tolist() == pytest.approx([0.25] * 4)
