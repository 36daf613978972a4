"""The contract of all samplers. The distribution of their images is tested in test_recovery.py."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    LinearSchedule,
    RectifiedFlowSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import (
    DDIM,
    Churn,
    DPMSolver,
    DPMSolverSDE,
    DynamicClipping,
    Euler,
    Heun,
    KarrasTimes,
    ListedTimes,
    NoClipping,
    QuadraticTimes,
    StaticClipping,
    UniPC,
)
from support.every_sampler import SAMPLERS, Case, Spy, every_sampler
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise, walk

LINEAR = GaussianProcess(LinearSchedule())
COSINE = GaussianProcess(CosineSchedule(40))
WITH_LISTED_TIMES = {name: case for name, case in SAMPLERS.items() if case.call_times is not None}
WITHOUT_CHURN = {name: case for name, case in SAMPLERS.items() if "later time" not in case.reason}


def listed(*steps: int) -> ListedTimes:
    return ListedTimes([step / 40 for step in steps])


@pytest.mark.parametrize("case", WITH_LISTED_TIMES.values(), ids=WITH_LISTED_TIMES.keys())
@settings(max_examples=15)
@given(steps=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
def test_any_decreasing_list_of_times_is_followed_in_order(case: Case, steps: list[int]) -> None:
    steps, spy = sorted(steps, reverse=True), Spy()
    case.build(COSINE, num_steps=len(steps), time_grid=listed(*steps)).sample(
        spy, ImageNoise(range(5), (3, 8, 6)), Condition()
    )
    assert case.call_times is not None
    assert [t.tolist() for _, t, _ in spy.calls] == [[t] * 5 for t in case.call_times([step / 40 for step in steps])]
    assert all(t.dtype == torch.float64 for _, t, _ in spy.calls)


@every_sampler
@settings(max_examples=15)
@given(steps=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
def test_any_decreasing_list_of_times_ends_at_the_image(case: Case, steps: list[int]) -> None:
    steps = sorted(steps, reverse=True)
    sampler = case.build(COSINE, num_steps=len(steps), time_grid=listed(*steps))
    images = sampler.sample(Spy(), ImageNoise(range(5), (3, 8, 6)), Condition())
    torch.testing.assert_close(images, torch.full_like(images, 0.5), rtol=0, atol=1e-6)


@every_sampler
@pytest.mark.parametrize(
    ("times", "num_steps", "message"),
    [
        ([0.25, 0.5, 0.75], 3, "times must be a strictly decreasing list of numbers above 0"),
        ([0.75, 0.75, 0.5], 3, "times must be a strictly decreasing list of numbers above 0"),
        ([0.75, 0.5, 0.0], 3, "times must be a strictly decreasing list of numbers above 0"),
        ([], 0, "times must be a strictly decreasing list of numbers above 0"),
        ([0.75, 0.51, 0.25], 3, "t must be one of 0, 1/40, 2/40, ..., 1 .* got 0.51"),
        ([0.75, 0.5, 0.25], 4, r"num_steps must be 3 \(the number of listed times\), got 4"),
    ],
)
def test_invalid_lists_of_times_are_refused_by_the_constructor(
    case: Case, times: Sequence[float], num_steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        case.build(COSINE, num_steps=num_steps, time_grid=ListedTimes(times))


@every_sampler
def test_more_steps_than_the_table_has_are_refused_by_the_constructor(case: Case) -> None:
    with pytest.raises(ValueError, match="num_steps must be at most the schedule's 1000 steps, got 2000"):
        case.build(LINEAR, num_steps=2000)


@every_sampler
def test_num_steps_none_takes_all_steps_of_a_table_and_is_refused_without_one(case: Case) -> None:
    assert case.build(COSINE, num_steps=None).times == tuple(k / 40 for k in range(40, 0, -1))
    with pytest.raises(ValueError, match="num_steps must be given for the continuous VPSchedule, got None"):
        case.build(GaussianProcess(VPSchedule()), num_steps=None)


@every_sampler
@pytest.mark.parametrize(
    ("process", "std"),
    [
        (COSINE, 1.0),
        (GaussianProcess(JSDSchedule(40)), 1.0),
        (GaussianProcess(LinearSchedule(40, 0.001, 0.1)), 1.0),  # as in the paper, although signal is left at t_max
        (GaussianProcess(VPSchedule()), 1.0),
        (GaussianProcess(RectifiedFlowSchedule()), 1.0),
        (GaussianProcess(VESchedule()), 50.0),
        (GaussianProcess(EDMSchedule()), 80.0),
    ],
    ids=str,
)
def test_sampling_starts_from_noise_with_the_std_of_the_papers(
    case: Case, process: GaussianProcess, std: float
) -> None:
    spy, noise = Spy(), RecordedNoise((5, 3, 8, 6))
    case.build(process, num_steps=4).sample(spy, noise, Condition())
    torch.testing.assert_close(spy.calls[0][0], std * noise.drawn[0])


@pytest.mark.parametrize("case", WITHOUT_CHURN.values(), ids=WITHOUT_CHURN.keys())
@pytest.mark.parametrize(
    ("process", "times", "std"),
    [
        (COSINE, [0.25, 0.1], 1.0),
        (GaussianProcess(RectifiedFlowSchedule()), [0.6, 0.2], 0.6),
        (GaussianProcess(EDMSchedule()), [7.0, 1.0], 7.0),
    ],
    ids=str,
)
def test_a_later_start_has_noise_at_the_level_of_its_first_time(
    case: Case, process: GaussianProcess, times: list[float], std: float
) -> None:
    spy, noise = Spy(), RecordedNoise((5, 3, 8, 6))
    case.build(process, num_steps=2, time_grid=ListedTimes(times)).sample(spy, noise, Condition())
    torch.testing.assert_close(spy.calls[0][0], std * noise.drawn[0])
    assert spy.calls[0][1].tolist() == pytest.approx([times[0]] * 5, rel=1e-12)


@every_sampler
@pytest.mark.parametrize("num_steps", [1, 7])
def test_noise_is_drawn_as_often_as_the_algorithm_requires(case: Case, num_steps: int) -> None:
    noise = RecordedNoise((5, 3, 8, 6))
    case.build(COSINE, num_steps=num_steps).sample(Spy(), noise, Condition())
    assert len(noise.drawn) == case.num_draws(num_steps)


@every_sampler
def test_each_step_is_reported_once_and_the_last_is_the_image(case: Case) -> None:
    steps: list[tuple[int, Tensor, Tensor]] = []
    images = case.build(COSINE, num_steps=6).sample(
        GaussianOracle(COSINE), ImageNoise(range(5), (3, 8, 6)), Condition(), on_step=lambda *step: steps.append(step)
    )
    assert [done for done, _, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(steps[-1][1], images)
    torch.testing.assert_close(steps[-1][2], images)  # at time 0 the estimate is the image
    assert {(x_t.shape, x_t.dtype) for _, x_t, _ in steps} == {(images.shape, torch.float32)}
    assert {(x_0.shape, x_0.dtype) for _, _, x_0 in steps} == {(images.shape, torch.float32)}


@every_sampler
def test_on_step_does_not_change_the_images(case: Case) -> None:
    sampler, noise = case.build(COSINE, num_steps=6), partial(ImageNoise, range(5), (3, 8, 6))
    watched, _ = walk(sampler, GaussianOracle(COSINE, 0.3, 0.5), noise())
    assert torch.equal(watched[-1], sampler.sample(GaussianOracle(COSINE, 0.3, 0.5), noise(), Condition()))


@every_sampler
@pytest.mark.parametrize("process", [COSINE, GaussianProcess(EDMSchedule())], ids=str)
def test_an_image_does_not_depend_on_its_batch(case: Case, process: GaussianProcess) -> None:
    sampler, oracle = case.build(process, num_steps=6), MixtureOracle(process)
    together = sampler.sample(oracle, ImageNoise([4, 9, 2], (3, 8, 6)), Condition())
    alone = sampler.sample(oracle, ImageNoise([9], (3, 8, 6)), Condition())
    assert torch.equal(together[1:2], alone)


@every_sampler
def test_an_image_does_not_depend_on_much_harder_images_in_its_batch(case: Case) -> None:
    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        steepness = torch.where(condition.label == 0, 1.0, 40.0).view(-1, 1, 1, 1)
        return Estimate((steepness * x_t).tanh())

    sampler = case.build(COSINE, num_steps=6)
    together = sampler.sample(denoiser, ImageNoise([4, 9, 2], (3, 8, 6)), Condition(torch.tensor([1, 0, 1])))
    alone = sampler.sample(denoiser, ImageNoise([9], (3, 8, 6)), Condition(torch.tensor([0])))
    assert torch.equal(together[1:2], alone)


@every_sampler
def test_clipping_keeps_estimates_in_range_and_changes_the_images(case: Case) -> None:
    denoiser, noise = GaussianOracle(COSINE, 0.9, 0.5), partial(ImageNoise, range(5), (3, 8, 6))
    clipped, clipped_estimates = walk(case.build(COSINE, num_steps=6, clipping=StaticClipping()), denoiser, noise())
    free, free_estimates = walk(case.build(COSINE, num_steps=6, clipping=NoClipping()), denoiser, noise())
    assert float(clipped_estimates.abs().max()) == 1.0
    assert float(free_estimates.max()) > 1.5
    assert float(clipped[-1].max()) <= 1 + 1e-6
    assert float((free - clipped)[-1].abs().max()) > 0.5
    # If only the last estimate were clipped, earlier steps would not change.
    assert float((free - clipped)[-2].abs().max()) > 0.1


@every_sampler
def test_estimates_are_clipped_by_default(case: Case) -> None:
    noise = ImageNoise(range(5), (3, 8, 6))
    _, estimates = walk(case.build(COSINE, num_steps=6), GaussianOracle(COSINE, 0.9, 0.5), noise)
    assert float(estimates.max()) == 1.0


@every_sampler
def test_sampling_computes_no_gradients_and_passes_the_condition_to_the_denoiser(case: Case) -> None:
    spy, weight, label = Spy(), torch.ones(1, requires_grad=True), torch.tensor([3, 1, 4, 1, 5])

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(weight * spy(x_t, t, condition).x_0)

    images = case.build(COSINE, num_steps=3).sample(denoiser, ImageNoise(range(5), (3, 8, 6)), Condition(label))
    assert not images.requires_grad
    for _, _, condition in spy.calls:
        assert condition.label is not None
        assert torch.equal(condition.label, label)


@every_sampler
@pytest.mark.parametrize("schedule", [EDMSchedule(), VESchedule()], ids=str)
def test_karras_times_work_with_every_sampler(case: Case, schedule: EDMSchedule | VESchedule) -> None:
    process = GaussianProcess(schedule)
    sampler = case.build(process, num_steps=7, time_grid=KarrasTimes())
    images = sampler.sample(Spy(), RecordedNoise((5, 3, 8, 6)), Condition())
    torch.testing.assert_close(images, torch.full_like(images, 0.5), rtol=0, atol=1e-9)


def test_the_defaults_are_those_of_the_papers() -> None:
    assert (DDIM(LINEAR).num_steps, DDIM(LINEAR).eta) == (50, 0.0)
    assert (Euler(LINEAR).num_steps, Heun(LINEAR).num_steps) == (50, 18)
    assert (DPMSolver(LINEAR).num_steps, DPMSolverSDE(LINEAR).num_steps) == (20, 20)
    assert (UniPC(LINEAR).num_steps, UniPC(LINEAR).order) == (10, 2)
    assert Euler(LINEAR).churn == Heun(LINEAR).churn == Churn(0.0, 0.0, math.inf, 1.0)
    assert DynamicClipping().percentile == 0.995
    assert (KarrasTimes().rho, QuadraticTimes().reach) == (7.0, 0.8)
