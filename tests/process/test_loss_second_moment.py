"""Importance sampling of times: what one process learns, and what several learn together."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from diffusion_lab.process import CosineSchedule, EDMSchedule, LinearSchedule, LossSecondMoment
from diffusion_lab.randomness import Draws

T = 8
SCHEDULE = LinearSchedule(T)


def meet(times: LossSecondMoment, steps: Sequence[int], losses: Sequence[float]) -> None:
    """One optimiser step that met these losses at these steps."""
    draws = Draws(0, 0, range(len(steps)), len(steps))
    times.update(draws, torch.tensor(steps).double() / T, torch.tensor(losses))
    times.finish_step()


def every_step_met(times: LossSecondMoment, rounds: int, seed: int = 0) -> Tensor:
    """The losses that each step met, in their order: [T, rounds]."""
    losses = torch.rand(T, rounds, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for k in range(rounds):
        meet(times, range(1, T + 1), losses[:, k].tolist())
    return losses


def test_times_are_uniform_until_every_step_was_met_often_enough() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3)
    every_step_met(times, 2)
    meet(times, range(1, T), [5.0] * (T - 1))
    for _ in range(4):  # the others more often than asked for
        meet(times, [1, 2], [9.0, 7.0])
    assert times.probabilities.tolist() == [1 / T] * T
    t, weight = times.sample(Draws(0, 0, range(30), 30))
    assert weight.tolist() == [1.0] * 30
    assert set((t * T).tolist()) <= set(range(1, T + 1))
    meet(times, [T], [5.0])
    assert float(times.probabilities.max() - times.probabilities.min()) > 0.01


@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_times_are_then_drawn_as_often_as_the_root_of_the_mean_square_loss(share: float) -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3, uniform_share=share)
    size = every_step_met(times, 3).square().mean(dim=1).sqrt()
    expected = (1 - share) * size / size.sum() + share / T  # Nichol & Dhariwal (2021), eq. 18, code
    torch.testing.assert_close(times.probabilities, expected, rtol=1e-7, atol=0)


def test_only_the_last_losses_are_remembered() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=3, uniform_share=1e-9)
    size = every_step_met(times, 8)[:, -3:].square().mean(dim=1).sqrt()
    torch.testing.assert_close(times.probabilities, size / size.sum(), rtol=1e-7, atol=0)


def test_losses_of_0_everywhere_leave_times_uniform() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=1)
    meet(times, range(1, T + 1), [0.0] * T)
    assert times.probabilities.tolist() == pytest.approx([1 / T] * T)


def test_a_step_without_loss_is_still_visited() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=1, uniform_share=0.08)
    meet(times, range(1, T + 1), [0.0, *[1.0] * (T - 1)])
    assert float(times.probabilities[0]) == pytest.approx(0.01)


@given(st.integers(0, 2**32))
def test_weights_keep_the_expected_loss_that_of_uniform_times(seed: int) -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=2)
    every_step_met(times, 2, seed)
    loss = torch.rand(T, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    probabilities = times.probabilities
    middles = Fixed(probabilities.cumsum(0) - probabilities / 2)  # one number for each step
    t, weight = times.sample(middles)
    assert (t * T).tolist() == list(range(1, T + 1))
    assert weight.dtype == torch.float32
    assert float((probabilities * weight * loss).sum()) == pytest.approx(float(loss.mean()), rel=1e-6)


def test_drawn_times_have_their_probabilities() -> None:
    times = LossSecondMoment(SCHEDULE, num_kept=2)
    every_step_met(times, 2)
    t, _ = times.sample(Fixed((torch.arange(100_000).double() + 0.5) / 100_000))
    assert t.dtype == torch.float64
    share = torch.bincount((t * T).round().long(), minlength=T + 1)[1:] / 100_000
    torch.testing.assert_close(share, times.probabilities.float(), rtol=0, atol=2e-5)
    ends, _ = times.sample(Fixed(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)))
    assert ends.tolist() == [1 / T, 1.0]
    # Ten times 0.1 sum to 1 - 2^-53 in float64: the largest number drawn lies beyond it.
    rounded, _ = LossSecondMoment(LinearSchedule(10)).sample(Fixed(ends.new_tensor([1 - 2**-53])))
    assert rounded.tolist() == [1.0]


@given(st.permutations(range(10)), st.integers(1, 9))
def test_shares_of_a_step_in_any_order_leave_the_same_history(positions: list[int], cut: int) -> None:
    steps, losses = [1, 1, 1, 2, 3, 1, 5, 8, 8, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    whole, shared = LossSecondMoment(SCHEDULE, num_kept=3), LossSecondMoment(SCHEDULE, num_kept=3)
    meet(whole, steps, losses)
    for share in (positions[:cut], positions[cut:]):
        t, loss = torch.tensor([steps[k] for k in share]).double() / T, torch.tensor([losses[k] for k in share])
        shared.update(Draws(0, 0, share, batch_size=10), t, loss)
    shared.finish_step()
    assert torch.equal(shared.kept, whole.kept)
    assert shared.num_met.tolist() == whole.num_met.tolist() == [5, 1, 1, 0, 1, 0, 0, 2]
    assert shared.kept[0].tolist() == pytest.approx([0.6, 1.0, 0.3])  # the fourth and fifth of that step's five


def test_nothing_is_learned_before_the_step_is_finished_and_nothing_twice() -> None:
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


def test_the_history_is_part_of_the_state_and_goes_on_where_it_stopped() -> None:
    whole, first, resumed = (LossSecondMoment(SCHEDULE, num_kept=2) for _ in range(3))
    every_step_met(whole, 3)
    every_step_met(first, 3)
    assert set(first.state_dict()) == {"kept", "num_met"}
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.probabilities, whole.probabilities)
    for times in (whole, resumed):
        meet(times, [2, 5, 2], [9.0, 7.0, 8.0])
    assert torch.equal(resumed.kept, whole.kept)
    assert torch.equal(resumed.probabilities, whole.probabilities)


def test_times_rounded_to_float32_still_belong_to_their_step() -> None:
    times = LossSecondMoment(CosineSchedule(4000), num_kept=1)
    times.update(Draws(0, 0, range(4000), 4000), CosineSchedule(4000).steps.float(), torch.arange(4000.0))
    times.finish_step()
    assert times.kept[:, 0].tolist() == list(range(4000))


def _learn(rank: int, shares: list[list[int]], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(shares)
    )
    times = LossSecondMoment(SCHEDULE, num_kept=3)
    for step in range(6):
        losses, steps = _global_batch(step)
        for share in (shares[rank][:4], shares[rank][4:]):  # two accumulated batches
            times.update(Draws(0, step, share, batch_size=16), steps[share] / T, losses[share])
        times.finish_step()
    torch.save(times.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Losses and steps of 16 images, each step of the table twice."""
    generator = torch.Generator().manual_seed(step)
    return torch.rand(16, generator=generator), (torch.randperm(16, generator=generator) % T + 1).double()


def test_two_processes_hold_the_history_of_one(tmp_path: Path) -> None:
    shares = [[0, 3, 4, 7, 8, 11, 12, 15], [1, 2, 5, 6, 9, 10, 13, 14]]
    spawn(_learn, args=(shares, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    alone = LossSecondMoment(SCHEDULE, num_kept=3)
    for step in range(6):
        losses, steps = _global_batch(step)
        alone.update(Draws(0, step, range(16), batch_size=16), steps / T, losses)
        alone.finish_step()
    for rank in (0, 1):
        together = LossSecondMoment(SCHEDULE, num_kept=3)
        together.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert together.num_met.tolist() == [12] * T
        assert torch.equal(together.kept, alone.kept)
        assert torch.equal(together.probabilities, alone.probabilities)


def test_settings_that_nothing_can_be_learned_with_are_refused() -> None:
    for schedule in (EDMSchedule(), SCHEDULE.continuous):
        with pytest.raises(ValueError, match="times must be drawn from a table of steps to learn from their losses"):
            LossSecondMoment(schedule)
    for num_kept in (0, -1):
        with pytest.raises(ValueError, match=f"num_kept must be at least 1, got {num_kept}"):
            LossSecondMoment(SCHEDULE, num_kept=num_kept)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"uniform_share must be in \(0, 1\], got {share}"):
            LossSecondMoment(SCHEDULE, uniform_share=share)


class Fixed(Draws):
    """Given numbers in place of drawn ones."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__(0, 0, range(len(numbers)), len(numbers))
        self.numbers = numbers

    def times(self) -> Tensor:
        return self.numbers


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_not_remembered(loss: float) -> None:
    times = LossSecondMoment(CosineSchedule(4), num_kept=1)
    draws = Draws(seed=0, step=0, positions=range(5), batch_size=5)
    times.update(draws, torch.tensor([1, 2, 3, 4, 4]).double() / 4, torch.tensor([1.0, 1.0, 1.0, 1.0, loss]))
    times.finish_step()
    assert times.probabilities.tolist() == pytest.approx([0.25] * 4)
