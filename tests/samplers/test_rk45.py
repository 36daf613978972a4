import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import RK45, ListedTimes, NoClipping
from diffusion_lab.samplers.probability_flow import ERROR, NODES, STAGES, dormand_prince
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise

SHAPE = (5, 3, 8, 6)
EDM = GaussianProcess(EDMSchedule())
every_schedule = pytest.mark.parametrize(
    "schedule",
    [VPSchedule(), EDMSchedule(), RectifiedFlowSchedule(), CosineSchedule(40)],
    ids=["vp", "edm", "rectified_flow", "cosine table"],
)


def closed_form(oracle: GaussianOracle, start: Tensor) -> Tensor:
    """Return the estimate at t_min after the exact flow from `start` at t_max, which maps quantiles to quantiles."""
    schedule = oracle.process.schedule
    alpha, sigma = schedule.coefficients(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64))
    std = (alpha**2 * oracle.std**2 + sigma**2).sqrt()
    x = alpha[1] * oracle.mean + std[1] / std[0] * (start - alpha[0] * oracle.mean)
    return oracle(x, torch.full((len(x),), schedule.t_min, dtype=torch.float64), Condition()).x_0


@every_schedule
def test_the_flow_of_a_gaussian_is_that_of_the_closed_form(schedule: NoiseSchedule) -> None:
    oracle, noise = GaussianOracle(GaussianProcess(schedule), 0.3, 0.5), RecordedNoise(SHAPE)
    sampler = RK45(oracle.process, rtol=1e-8, atol=1e-8, clipping=NoClipping())
    images = sampler.sample(oracle, noise, Condition())
    start = noise.drawn[0] * float(schedule.prior_std(torch.tensor(schedule.t_max)))
    torch.testing.assert_close(images, closed_form(oracle, start), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [VPSchedule(), EDMSchedule()], ids=["vp", "edm"])
def test_the_error_falls_with_the_tolerance_and_is_of_its_size(schedule: NoiseSchedule) -> None:
    oracle, num_calls = MixtureOracle(GaussianProcess(schedule)), list[int]()
    start = RecordedNoise(SHAPE).draw() * float(schedule.prior_std(torch.tensor(schedule.t_max)))
    end = oracle.flow(start, schedule.t_max, schedule.t_min)
    exact = oracle(end, torch.full((5,), schedule.t_min, dtype=torch.float64), Condition()).x_0
    errors: list[float] = []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        times: list[Tensor] = []

        def denoiser(x_t: Tensor, t: Tensor, condition: Condition, times: list[Tensor] = times) -> Estimate:
            times.append(t)
            return oracle(x_t, t, condition)

        sampler = RK45(oracle.process, rtol=tolerance, atol=tolerance, clipping=NoClipping())
        images = sampler.sample(denoiser, RecordedNoise(SHAPE), Condition())
        errors.append(float((images - exact).square().mean().sqrt()))
        num_calls.append(len(times))
        assert errors[-1] < 10 * tolerance
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * errors[0]
    # Fifth order: a hundredth of the error takes steps that are 100^(1/5), about 2.5 times, shorter.
    assert num_calls == sorted(num_calls)
    assert num_calls[-1] < 3.5 * num_calls[-2] < 3.5**2 * num_calls[-3]


def test_each_tolerance_alone_limits_the_error() -> None:
    oracle, noise = GaussianOracle(EDM, 0.3, 0.5), RecordedNoise(SHAPE)
    for rtol, atol in ((1e-7, 1e-30), (1e-30, 1e-7)):
        images = RK45(EDM, rtol=rtol, atol=atol, clipping=NoClipping()).sample(
            oracle, RecordedNoise(SHAPE), Condition()
        )
        torch.testing.assert_close(images, closed_form(oracle, 80 * noise.draw()), rtol=0, atol=1e-5)
        noise = RecordedNoise(SHAPE)


@pytest.mark.parametrize("label", [0, 1])
def test_the_number_of_evaluations_of_an_image_does_not_depend_on_its_batch(label: int) -> None:
    labels: list[Tensor] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        labels.append(condition.label)
        steepness = torch.where(condition.label == 0, 1.0, 30.0).view(-1, 1, 1, 1)
        return Estimate((steepness * x_t).tanh())

    sampler = RK45(EDM, clipping=NoClipping())
    sampler.sample(denoiser, ImageNoise([4, 9], (3, 8, 6)), Condition(torch.tensor([0, 1])))
    together = int((torch.cat(labels) == label).sum())
    labels.clear()
    sampler.sample(denoiser, ImageNoise([[4, 9][label]], (3, 8, 6)), Condition(torch.tensor([label])))
    assert together == len(torch.cat(labels))
    assert together > 10


def test_the_harder_of_two_images_is_evaluated_more_often() -> None:
    count = torch.zeros(2)

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        count.index_add_(0, condition.label, torch.ones(len(x_t)))
        steepness = torch.where(condition.label == 0, 1.0, 30.0).view(-1, 1, 1, 1)
        return Estimate((steepness * x_t).tanh())

    RK45(EDM, clipping=NoClipping()).sample(denoiser, ImageNoise([4, 9], (3, 8, 6)), Condition(torch.tensor([0, 1])))
    assert float(count[1]) > 1.2 * float(count[0])


@pytest.mark.parametrize(
    ("schedule", "times"),
    [(VPSchedule(), [1.0, 0.6, 0.3, 0.1]), (EDMSchedule(), [80.0, 20.0, 5.0, 1.0])],
    ids=["vp", "edm"],
)
def test_on_step_is_called_for_a_time_once_every_image_has_passed_it(
    schedule: NoiseSchedule, times: list[float]
) -> None:
    process, noise, stds = GaussianProcess(schedule), RecordedNoise((2, 3, 8, 6)), [0.5, 0.02]
    ratios: list[list[float]] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        oracles = [GaussianOracle(process, 0.0, stds[int(label)]) for label in condition.label]
        parts = [each(x_t[[i]], t[[i]], condition).x_0 for i, each in enumerate(oracles)]
        return Estimate(torch.cat(parts))

    def on_step(done: int, x_t: Tensor, x_0: Tensor) -> None:
        ratios.append((x_t.flatten(1).std(dim=1) / noise.drawn[0].flatten(1).std(dim=1)).tolist())

    sampler = RK45(process, 4, rtol=1e-6, atol=1e-6, time_grid=ListedTimes(times), clipping=NoClipping())
    sampler.sample(denoiser, noise, Condition(torch.tensor([0, 1])), on_step)
    assert len(ratios) == 4
    alpha, sigma = (each.tolist() for each in schedule.coefficients(torch.tensor(times, dtype=torch.float64)))
    prior = float(schedule.prior_std(torch.tensor(times[0], dtype=torch.float64)))
    for image, std in enumerate(stds):
        exact_stds = [math.hypot(a * std, b) for a, b in zip(alpha, sigma, strict=True)]
        for ratio, exact_std in zip(ratios, exact_stds[1:], strict=False):
            expected = prior * exact_std / exact_stds[0]
            assert 0.5 * expected < ratio[image] < expected * (1 + 1e-4)


def test_the_solver_does_not_modify_its_initial_state() -> None:
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    end = dormand_prince(lambda state, angle, rows: -state, start, 1.0, 0.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(end, math.e * start, rtol=1e-8, atol=0)
    assert start.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("bad_from", [1.0, 0.5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_estimate_that_is_not_finite_raises_an_error(bad_from: float, value: float) -> None:
    process = GaussianProcess(VPSchedule())

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        bad = (t <= bad_from).view(-1, 1, 1, 1)
        return Estimate(torch.where(bad, value, x_t / 2))

    with pytest.raises(FloatingPointError, match="the probability flow cannot be solved"):
        RK45(process, clipping=NoClipping()).sample(denoiser, ImageNoise(range(5), (3, 8, 6)), Condition())


@pytest.mark.parametrize("beta_start", [0.0, 1e-4])
def test_the_number_of_evaluations_is_bounded_if_the_first_step_adds_little_or_no_noise(beta_start: float) -> None:
    process, times = GaussianProcess(LinearSchedule(50, beta_start, 0.98)), list[Tensor]()

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        times.append(t)
        return GaussianOracle(process, 0.3, 0.5)(x_t, t, condition)

    RK45(process, clipping=NoClipping()).sample(denoiser, ImageNoise(range(5), (3, 8, 6)), Condition())
    assert len(times) < 200


@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan])
def test_tolerances_that_are_not_above_0_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"rtol must be above 0, got {value}"):
        RK45(EDM, rtol=value)
    with pytest.raises(ValueError, match=f"atol must be above 0, got {value}"):
        RK45(EDM, atol=value)


def test_the_tableau_satisfies_the_conditions_of_order_5_and_of_order_4() -> None:
    fifth = [*STAGES[-1], 0.0]
    fourth = [weight - error for weight, error in zip(fifth, ERROR, strict=True)]
    for node, row in zip(NODES, STAGES, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    for row in STAGES[2:]:
        assert sum(a * c for a, c in zip(row, NODES, strict=False)) == pytest.approx(sum(row) ** 2 / 2, abs=1e-14)
    for weights, order in ((fifth, 5), (fourth, 4)):
        for power in range(order):
            moment = sum(weight * node**power for weight, node in zip(weights, NODES, strict=True))
            assert moment == pytest.approx(1 / (power + 1), abs=1e-14)
