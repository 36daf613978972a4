from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate
from diffusion_lab.guidance import Autoguidance, ClassifierFreeGuidance, Guidance, Strength
from diffusion_lab.guidance.strength import Guidable
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.process import (
    X0,
    CosineSchedule,
    Epsilon,
    GaussianProcess,
    LinearSchedule,
    NoiseSchedule,
    Prediction,
    V,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM

PROCESS = GaussianProcess(CosineSchedule(40))
LABEL = torch.tensor([0, 2, 1, 2, 0])
NULL = 3


class LabelledDenoiser:
    """Estimates that depend on the image, the time and the label; remembers how many images it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        assert len(x_t) == len(t) == len(condition.label)
        self.asked.append(len(x_t))
        shift = (condition.label + 1 + t).to(x_t.dtype).view(-1, 1, 1, 1)
        return Estimate((x_t / 2 + shift).sin())


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(5, 3, 8, 6, dtype=torch.float64)


@pytest.fixture
def t() -> Tensor:
    return torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


def guided(denoiser: DenoiserLike, guidance_scale: float, **settings: Any) -> ClassifierFreeGuidance:
    """Under classifier-free guidance."""
    return ClassifierFreeGuidance(Guidable(denoiser, PROCESS, Epsilon()), NULL, Strength(guidance_scale, **settings))


def estimate(guidance_scale: float, x_t: Tensor, t: Tensor) -> Tensor:
    return guided(LabelledDenoiser(), guidance_scale)(x_t, t, Condition(LABEL)).x_0


def plain(label: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    return LabelledDenoiser()(x_t, t, Condition(label)).x_0


def test_scale_1_is_the_conditional_estimate(x_t: Tensor, t: Tensor) -> None:
    assert torch.equal(estimate(1, x_t, t), plain(LABEL, x_t, t))


def test_scale_0_is_the_unconditional_estimate(x_t: Tensor, t: Tensor) -> None:
    assert torch.equal(estimate(0, x_t, t), plain(torch.full((5,), NULL), x_t, t))


def test_both_halves_are_told_of_the_augmentation(x_t: Tensor, t: Tensor) -> None:
    told: list[Tensor | None] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        told.append(condition.augmentation)
        return Estimate(x_t)

    augmentation = torch.randn(5, 9)
    guided(denoiser, 2.0)(x_t, t, Condition(LABEL, augmentation))
    assert told[0] is not None
    assert torch.equal(told[0], torch.cat([augmentation, augmentation]))


@pytest.mark.parametrize("guidance_scale", [0.5, 3.0])
def test_other_scales_walk_on_along_the_difference(guidance_scale: float, x_t: Tensor, t: Tensor) -> None:
    with_label, without = plain(LABEL, x_t, t), plain(torch.full((5,), NULL), x_t, t)
    expected = without + guidance_scale * (with_label - without)
    torch.testing.assert_close(estimate(guidance_scale, x_t, t), expected)


def test_guidance_is_the_same_in_noise_as_in_images(x_t: Tensor, t: Tensor) -> None:
    alpha_t, sigma_t = PROCESS.coefficients(t, like=x_t)
    with_label = (x_t - alpha_t * plain(LABEL, x_t, t)) / sigma_t
    without = (x_t - alpha_t * plain(torch.full((5,), NULL), x_t, t)) / sigma_t
    w = 2.0  # Ho & Salimans (2022), eq. 6, where w = guidance_scale - 1
    expected = (1 + w) * with_label - w * without
    torch.testing.assert_close((x_t - alpha_t * estimate(3.0, x_t, t)) / sigma_t, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_the_reverse_variance_is_that_of_the_network_with_the_label(
    guidance_scale: float, x_t: Tensor, t: Tensor
) -> None:
    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        says = condition.label.double().view(-1, 1, 1, 1).expand_as(x_t)
        return Estimate(x_t / 2, says)

    found = guided(denoiser, guidance_scale)(x_t, t, Condition(LABEL)).variance_output
    assert found is not None
    assert torch.equal(found, LABEL.double().view(-1, 1, 1, 1).expand_as(x_t))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_a_network_that_says_nothing_of_the_variance_still_says_nothing(
    guidance_scale: float, x_t: Tensor, t: Tensor
) -> None:
    assert guided(LabelledDenoiser(), guidance_scale)(x_t, t, Condition(LABEL)).variance_output is None


@pytest.mark.parametrize(("guidance_scale", "size"), [(0.0, 10), (1.0, 5), (3.0, 10)])
def test_the_network_is_called_once_a_step_for_both_halves_only_where_both_are_needed(
    guidance_scale: float, size: int
) -> None:
    denoiser = LabelledDenoiser()
    DDIM(PROCESS, num_steps=7).sample(
        guided(denoiser, guidance_scale), ImageNoise(range(5), (3, 8, 6)), Condition(LABEL)
    )
    assert denoiser.asked == [size] * 7


def test_guidance_without_labels_is_refused(x_t: Tensor, t: Tensor) -> None:
    with pytest.raises(ValueError, match="label must be given where guidance_scale is not 1, got None"):
        guided(LabelledDenoiser(), 2.0)(x_t, t, Condition())


def test_outside_of_its_interval_of_noise_levels_there_is_no_guidance(x_t: Tensor, t: Tensor) -> None:
    alpha_t, sigma_t = PROCESS.schedule.coefficients(t)
    levels = sigma_t / alpha_t
    denoiser = LabelledDenoiser()
    found = guided(denoiser, 3.0, interval=(float(levels[1]), float(levels[3])))(x_t, t, Condition(LABEL)).x_0
    assert denoiser.asked == [10]
    everywhere, nowhere = estimate(3.0, x_t, t), plain(LABEL, x_t, t)
    assert torch.equal(found[2:4], everywhere[2:4])  # above the first level, up to the second
    assert torch.equal(found[[0, 1, 4]], nowhere[[0, 1, 4]])


def test_a_step_without_guidance_costs_one_pass_over_one_half(x_t: Tensor, t: Tensor) -> None:
    denoiser = LabelledDenoiser()
    found = guided(denoiser, 3.0, interval=(1e6, 1e7))(x_t, t, Condition(LABEL)).x_0
    assert denoiser.asked == [5]
    assert torch.equal(found, plain(LABEL, x_t, t))


@pytest.mark.parametrize("prediction", [Epsilon(), V(), X0()])
@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescaled_answers_are_those_of_the_papers_formula(
    prediction: Prediction, rescale: float, x_t: Tensor, t: Tensor
) -> None:
    t = t.clamp(max=0.8)
    around = prediction.preconditioning(t, PROCESS)
    with_label, without = (
        around.output(x_0, x_t) for x_0 in (plain(LABEL, x_t, t), plain(torch.full((5,), NULL), x_t, t))
    )
    # Lin et al. (2024), eq. 14 to 16; the deviation is of all numbers of an image.
    answer = without + 3.0 * (with_label - without)
    rescaled = answer * with_label.std(dim=(1, 2, 3), keepdim=True) / answer.std(dim=(1, 2, 3), keepdim=True)
    expected = rescale * rescaled + (1 - rescale) * answer
    of = Guidable(LabelledDenoiser(), PROCESS, prediction)
    found = ClassifierFreeGuidance(of, NULL, Strength(3.0, rescale=rescale))(x_t, t, Condition(LABEL)).x_0
    torch.testing.assert_close(around.output(found, x_t), expected)


def test_autoguidance_walks_away_from_the_weaker_network_told_the_same(x_t: Tensor, t: Tensor) -> None:
    told: list[Condition] = []

    def guide(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        told.append(condition)
        return Estimate((x_t / 3).cos())

    def strong(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate((x_t / 2).sin(), x_t)

    autoguided = Autoguidance(Guidable(strong, PROCESS, Epsilon()), guide, Strength(2.5))
    found = autoguided(x_t, t, Condition(LABEL))
    torch.testing.assert_close(found.x_0, 2.5 * (x_t / 2).sin() - 1.5 * (x_t / 3).cos())
    assert found.variance_output is x_t
    assert [condition.label is LABEL for condition in told] == [True]
    nowhere = Autoguidance(Guidable(strong, PROCESS, Epsilon()), guide, Strength(2.5, (1e6, 1e7)))
    assert torch.equal(nowhere(x_t, t, Condition(LABEL)).x_0, (x_t / 2).sin())
    assert len(told) == 1


def denoiser(schedule: NoiseSchedule | None = None) -> Denoiser:
    process = GaussianProcess(schedule or PROCESS.schedule)
    return Denoiser(lambda x, time, condition: x / 2, process, Epsilon())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guidance", "kind"),
    [
        (Guidance(), Denoiser),
        (Guidance(Strength(2.0)), ClassifierFreeGuidance),
        (Guidance(Strength(2.0), guide=denoiser()), Autoguidance),
    ],
)
def test_guidance_wraps_what_it_needs_and_no_more(guidance: Guidance, kind: type) -> None:
    assert type(guidance(denoiser(), Labels(3, dropout=0.1))) is kind


def test_guidance_of_a_network_that_has_no_null_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropped labels .*conditioning.dropout above 0.* no null label"):
        Guidance(Strength(2.0))(denoiser(), Labels(num_classes=3))


def test_a_guide_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guide must be trained under the schedule .* CosineSchedule.*got LinearSch"):
        Guidance(Strength(2.0), guide=denoiser(LinearSchedule(40)))(denoiser(), Labels())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance(guide=denoiser()), "guidance_scale must be above 1 for the guide to have an effect, got 1"),
        (lambda: Guidance(classifier_scale=-1.0), "classifier_scale must be a number of at least 0, got -1.0"),
        (lambda: Strength(float("nan")), "guidance_scale must be a finite number, got nan"),
        (lambda: Strength(2.0, (3.0, 1.0)), r"interval must be two noise levels .* growing, got \[3.0, 1.0\]"),
        (
            lambda: Strength(2.0, (1.0,)),  # type: ignore[arg-type]
            r"interval must be two noise levels .* growing, got \[1.0\]",
        ),
        (lambda: Strength(2.0, rescale=1.5), r"rescale must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
