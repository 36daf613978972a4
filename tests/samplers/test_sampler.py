"""What every sampler keeps to. A new sampler is one more line in SAMPLERS."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, FixedLarge, FixedSmall, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, ListedTimes, NoClipping, Sampler, StaticClipping
from oracles import GaussianOracle, RecordedNoise, walk

Build = Callable[..., Sampler]
SAMPLERS = {
    "ancestral, fixed large": partial(Ancestral, variance=FixedLarge()),
    "ancestral, fixed small": partial(Ancestral, variance=FixedSmall()),
    "ddim, eta 0": partial(DDIM, eta=0.0),
    "ddim, eta 0.5": partial(DDIM, eta=0.5),
    "ddim, eta 1": partial(DDIM, eta=1.0),
}
every_sampler = pytest.mark.parametrize("build", SAMPLERS.values(), ids=SAMPLERS.keys())

LINEAR = GaussianProcess(LinearSchedule())
COSINE = GaussianProcess(CosineSchedule(40))


def listed(*steps: int) -> ListedTimes:
    return ListedTimes([step / 40 for step in steps])


class Spy:
    """A denoiser that answers 0.5 everywhere and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, Condition]] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        self.asked.append((x_t, t, condition))
        return Estimate(torch.full_like(x_t, 0.5))


@every_sampler
@pytest.mark.parametrize("process", [LINEAR, GaussianProcess(CosineSchedule())], ids=["linear", "cosine"])
def test_sampler_recovers_a_gaussian_from_its_exact_denoiser(build: Build, process: GaussianProcess) -> None:
    sampler = build(process, num_steps=250, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(40), (3, 24, 16)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(images.std()) == pytest.approx(0.5, abs=0.02)


@every_sampler
def test_sampler_recovers_a_single_image_from_its_exact_denoiser(build: Build) -> None:
    images = build(COSINE, num_steps=7).sample(Spy(), RecordedNoise((5, 3, 8, 6)), Condition())
    torch.testing.assert_close(images, torch.full_like(images, 0.5), rtol=0, atol=1e-12)


@every_sampler
@given(steps=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
def test_any_decreasing_list_of_times_is_walked_in_order_to_the_image(build: Build, steps: list[int]) -> None:
    steps = sorted(steps, reverse=True)
    sampler = build(COSINE, num_steps=len(steps), time_grid=listed(*steps))
    spy = Spy()
    images = sampler.sample(spy, ImageNoise(range(5), (3, 8, 6)), Condition())
    assert [t.tolist() for _, t, _ in spy.asked] == [[step / 40] * 5 for step in steps]
    assert all(t.dtype == torch.float64 for _, t, _ in spy.asked)
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
        ([0.75, 0.5, 0.25], 4, "num_steps must be 3, the number of listed times, got 4"),
    ],
)
def test_lists_that_cannot_be_walked_are_refused_when_built(
    build: Build, times: Sequence[float], num_steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(COSINE, num_steps=num_steps, time_grid=ListedTimes(times))


@every_sampler
def test_more_steps_than_the_table_has_are_refused_when_built(build: Build) -> None:
    with pytest.raises(ValueError, match="num_steps must be at most the schedule's 1000 steps, got 2000"):
        build(LINEAR, num_steps=2000)


@every_sampler
def test_sampling_starts_from_noise_at_the_level_of_the_first_time(build: Build) -> None:
    spy, noise = Spy(), RecordedNoise((5, 3, 8, 6))
    build(COSINE, num_steps=2, time_grid=listed(10, 4)).sample(spy, noise, Condition())
    _, sigma_t = COSINE.schedule.coefficients(torch.tensor(0.25))
    torch.testing.assert_close(spy.asked[0][0], float(sigma_t) * noise.drawn[0])


@every_sampler
def test_each_step_is_reported_once_and_the_last_is_the_image(build: Build) -> None:
    steps: list[tuple[int, Tensor, Tensor]] = []
    images = build(COSINE, num_steps=6).sample(
        GaussianOracle(COSINE), ImageNoise(range(5), (3, 8, 6)), Condition(), on_step=lambda *step: steps.append(step)
    )
    assert [done for done, _, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(steps[-1][1], images)
    torch.testing.assert_close(steps[-1][2], images)  # at time 0 the estimate is the image


@every_sampler
def test_an_image_does_not_depend_on_its_batch(build: Build) -> None:
    sampler = build(COSINE, num_steps=6)
    together = sampler.sample(GaussianOracle(COSINE), ImageNoise([4, 9, 2], (3, 8, 6)), Condition())
    alone = sampler.sample(GaussianOracle(COSINE), ImageNoise([9], (3, 8, 6)), Condition())
    assert torch.equal(together[1:2], alone)


@every_sampler
def test_clipping_holds_estimates_in_range_and_changes_the_images(build: Build) -> None:
    denoiser, noise = GaussianOracle(COSINE, 0.9, 0.5), partial(ImageNoise, range(5), (3, 8, 6))
    clipped, held = walk(build(COSINE, num_steps=6, clipping=StaticClipping()), denoiser, noise())
    free, unheld = walk(build(COSINE, num_steps=6, clipping=NoClipping()), denoiser, noise())
    assert float(held.abs().max()) == 1.0
    assert float(unheld.max()) > 1.5
    assert float(clipped[-1].max()) <= 1 + 1e-6
    assert float((free - clipped)[-1].abs().max()) > 0.5


@every_sampler
def test_estimates_are_clipped_unless_asked_otherwise(build: Build) -> None:
    noise = ImageNoise(range(5), (3, 8, 6))
    _, estimates = walk(build(COSINE, num_steps=6), GaussianOracle(COSINE, 0.9, 0.5), noise)
    assert float(estimates.max()) == 1.0


@every_sampler
def test_a_schedule_whose_first_step_adds_no_noise_gives_finite_images(build: Build) -> None:
    process = GaussianProcess(LinearSchedule(50, 0.0, 0.98))
    sampler = build(process, num_steps=50, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(20), (3, 24, 16)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert 0.3 < float(images.std()) < 0.7


@every_sampler
def test_sampling_keeps_no_gradients_and_passes_the_condition_on(build: Build) -> None:
    spy, weight, condition = Spy(), torch.ones(1, requires_grad=True), Condition(torch.tensor([3, 1, 4, 1, 5]))

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(weight * spy(x_t, t, condition).x_0)

    images = build(COSINE, num_steps=3).sample(denoiser, ImageNoise(range(5), (3, 8, 6)), condition)
    assert not images.requires_grad
    assert [asked[2] is condition for asked in spy.asked] == [True] * 3
