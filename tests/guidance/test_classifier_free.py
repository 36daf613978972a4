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
from support.networks import NetworkFunction

PROCESS = GaussianProcess(CosineSchedule(40))
LABEL = torch.tensor([0, 2, 1, 2, 0])
NULL = 3


class LabeledDenoiser:
    """A denoiser whose estimates depend on the image, the time and the label; records the batch size of each call."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        assert len(x_t) == len(t) == len(condition.label)
        self.batch_sizes.append(len(x_t))
        shift = (condition.label + 1 + t).to(x_t.dtype).view(-1, 1, 1, 1)
        return Estimate((x_t / 2 + shift).sin())


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(5, 3, 8, 6, dtype=torch.float64)


@pytest.fixture
def t() -> Tensor:
    return torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


def guided(denoiser: DenoiserLike, guidance_scale: float, **settings: Any) -> ClassifierFreeGuidance:
    """Return the denoiser with classifier-free guidance."""
    return ClassifierFreeGuidance(Guidable(denoiser, PROCESS, Epsilon()), NULL, Strength(guidance_scale, **settings))


def estimate(guidance_scale: float, x_t: Tensor, t: Tensor) -> Tensor:
    return guided(LabeledDenoiser(), guidance_scale)(x_t, t, Condition(LABEL)).x_0


def plain(label: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    return LabeledDenoiser()(x_t, t, Condition(label)).x_0


def test_scale_1_is_the_conditional_estimate(x_t: Tensor, t: Tensor) -> None:
    assert torch.equal(estimate(1, x_t, t), plain(LABEL, x_t, t))


def test_scale_0_is_the_unconditional_estimate(x_t: Tensor, t: Tensor) -> None:
    assert torch.equal(estimate(0, x_t, t), plain(torch.full((5,), NULL), x_t, t))


def test_both_halves_of_the_batch_receive_the_augmentation(x_t: Tensor, t: Tensor) -> None:
    augmentations: list[Tensor | None] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        augmentations.append(condition.augmentation)
        return Estimate(x_t)

    augmentation = torch.randn(5, 9)
    guided(denoiser, 2.0)(x_t, t, Condition(LABEL, augmentation))
    assert augmentations[0] is not None
    assert torch.equal(augmentations[0], torch.cat([augmentation, augmentation]))


@pytest.mark.parametrize("guidance_scale", [0.5, 3.0])
def test_other_scales_extrapolate_along_the_difference(guidance_scale: float, x_t: Tensor, t: Tensor) -> None:
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
        variance_output = condition.label.double().view(-1, 1, 1, 1).expand_as(x_t)
        return Estimate(x_t / 2, variance_output)

    found = guided(denoiser, guidance_scale)(x_t, t, Condition(LABEL)).variance_output
    assert found is not None
    assert torch.equal(found, LABEL.double().view(-1, 1, 1, 1).expand_as(x_t))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_a_network_without_variance_output_has_none_with_guidance(
    guidance_scale: float, x_t: Tensor, t: Tensor
) -> None:
    assert guided(LabeledDenoiser(), guidance_scale)(x_t, t, Condition(LABEL)).variance_output is None


@pytest.mark.parametrize(("guidance_scale", "size"), [(0.0, 10), (1.0, 5), (3.0, 10)])
def test_the_network_is_called_once_per_step_with_both_halves_only_if_both_are_needed(
    guidance_scale: float, size: int
) -> None:
    denoiser = LabeledDenoiser()
    DDIM(PROCESS, num_steps=7).sample(
        guided(denoiser, guidance_scale), ImageNoise(range(5), (3, 8, 6)), Condition(LABEL)
    )
    assert denoiser.batch_sizes == [size] * 7


def test_guidance_without_labels_is_refused(x_t: Tensor, t: Tensor) -> None:
    with pytest.raises(ValueError, match="`label` must be given if guidance_scale is not 1, got None"):
        guided(LabeledDenoiser(), 2.0)(x_t, t, Condition())


def test_there_is_no_guidance_outside_the_interval_of_noise_levels(x_t: Tensor, t: Tensor) -> None:
    alpha_t, sigma_t = PROCESS.schedule.coefficients(t)
    levels = sigma_t / alpha_t
    denoiser = LabeledDenoiser()
    found = guided(denoiser, 3.0, interval=(float(levels[1]), float(levels[3])))(x_t, t, Condition(LABEL)).x_0
    assert denoiser.batch_sizes == [10]
    expected, unguided = estimate(3.0, x_t, t), plain(LABEL, x_t, t)
    assert torch.equal(found[2:4], expected[2:4])  # above the first level, up to the second
    assert torch.equal(found[[0, 1, 4]], unguided[[0, 1, 4]])


def test_a_step_without_guidance_evaluates_only_the_conditional_half(x_t: Tensor, t: Tensor) -> None:
    denoiser = LabeledDenoiser()
    found = guided(denoiser, 3.0, interval=(1e6, 1e7))(x_t, t, Condition(LABEL)).x_0
    assert denoiser.batch_sizes == [5]
    assert torch.equal(found, plain(LABEL, x_t, t))


@pytest.mark.parametrize("prediction", [Epsilon(), V(), X0()])
@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescaled_outputs_are_those_of_the_formula_of_the_paper(
    prediction: Prediction, rescale: float, x_t: Tensor, t: Tensor
) -> None:
    t = t.clamp(max=0.8)
    preconditioning = prediction.preconditioning(t, PROCESS)
    with_label, without = (
        preconditioning.output(x_0, x_t) for x_0 in (plain(LABEL, x_t, t), plain(torch.full((5,), NULL), x_t, t))
    )
    # Lin et al. (2024), eq. 14 to 16, with the std over all pixels and channels of an image.
    output = without + 3.0 * (with_label - without)
    rescaled = output * with_label.std(dim=(1, 2, 3), keepdim=True) / output.std(dim=(1, 2, 3), keepdim=True)
    expected = rescale * rescaled + (1 - rescale) * output
    guidable = Guidable(LabeledDenoiser(), PROCESS, prediction)
    found = ClassifierFreeGuidance(guidable, NULL, Strength(3.0, rescale=rescale))(x_t, t, Condition(LABEL)).x_0
    torch.testing.assert_close(preconditioning.output(found, x_t), expected)


def test_autoguidance_extrapolates_away_from_the_weaker_network_with_the_same_condition(x_t: Tensor, t: Tensor) -> None:
    conditions: list[Condition] = []

    def guide(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        conditions.append(condition)
        return Estimate((x_t / 3).cos())

    def strong(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate((x_t / 2).sin(), x_t)

    autoguided = Autoguidance(Guidable(strong, PROCESS, Epsilon()), guide, Strength(2.5))
    found = autoguided(x_t, t, Condition(LABEL))
    torch.testing.assert_close(found.x_0, 2.5 * (x_t / 2).sin() - 1.5 * (x_t / 3).cos())
    assert found.variance_output is x_t
    assert [condition.label is LABEL for condition in conditions] == [True]
    inactive = Autoguidance(Guidable(strong, PROCESS, Epsilon()), guide, Strength(2.5, (1e6, 1e7)))
    assert torch.equal(inactive(x_t, t, Condition(LABEL)).x_0, (x_t / 2).sin())
    assert len(conditions) == 1


def denoiser(schedule: NoiseSchedule | None = None) -> Denoiser:
    process = GaussianProcess(schedule or PROCESS.schedule)
    return Denoiser(NetworkFunction(lambda x, time, condition: x / 2, Labels(3, dropout=0.1)), process, Epsilon())


@pytest.mark.parametrize(
    ("guidance", "kind"),
    [
        (Guidance(), Denoiser),
        (Guidance(Strength(2.0)), ClassifierFreeGuidance),
        (Guidance(Strength(2.0), guide=denoiser()), Autoguidance),
    ],
)
def test_guidance_wraps_the_denoiser_only_if_it_is_active(guidance: Guidance, kind: type) -> None:
    assert type(guidance(denoiser(), Labels(3, dropout=0.1))) is kind


def test_guidance_of_a_network_without_null_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropped labels, such as labels=Labels.* no null label"):
        Guidance(Strength(2.0))(denoiser(), Labels(num_classes=3))


def test_a_guide_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`guide` must be trained with the schedule .*CosineSchedule.*got LinearSch"):
        Guidance(Strength(2.0), guide=denoiser(LinearSchedule(40)))(denoiser(), Labels())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance(guide=denoiser()), "guidance_scale must differ from 1 for .* effect, got 1"),
        (lambda: Guidance(classifier_scale=-1.0), "classifier_scale must be a finite number of at least 0, got -1.0"),
        (lambda: Strength(float("nan")), "guidance_scale must be a finite number of at least 0, got nan"),
        (lambda: Strength(-1.0), "guidance_scale must be a finite number of at least 0, got -1.0"),
        (lambda: Strength(2.0, (3.0, 1.0)), r"interval must be two increasing noise levels .* got \[3.0, 1.0\]"),
        (
            lambda: Strength(2.0, (1.0,)),  # type: ignore[arg-type]
            r"interval must be two increasing noise levels .* got \[1.0\]",
        ),
        (lambda: Strength(2.0, rescale=1.5), r"rescale must be in \[0, 1\], got 1.5"),
        (lambda: Strength(2.0, num_channels=0), "num_channels must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("prediction", [Epsilon(), V(), X0()], ids=str)
def test_guided_channels_are_those_of_the_code_of_dit(prediction: Prediction, t: Tensor) -> None:
    """Peebles & Xie (2023), code, forward_with_cfg: eps, rest = model_out[:, :3], model_out[:, 3:]."""
    x_t, t = torch.randn(5, 4, 8, 6, dtype=torch.float64), t.clamp(max=0.8)
    alpha_t, sigma_t = (value.view(-1, 1, 1, 1) for value in PROCESS.schedule.coefficients(t))
    conditional, unconditional = (
        (x_t - alpha_t * plain(label, x_t, t)) / sigma_t for label in (LABEL, torch.full((5,), NULL))
    )
    guided_noise = unconditional[:, :3] + 1.5 * (conditional[:, :3] - unconditional[:, :3])
    eps = torch.cat([guided_noise, conditional[:, 3:]], dim=1)
    guidable = Guidable(LabeledDenoiser(), PROCESS, prediction)
    found = ClassifierFreeGuidance(guidable, NULL, Strength(1.5, num_channels=3))(x_t, t, Condition(LABEL)).x_0
    torch.testing.assert_close(found, (x_t - sigma_t * eps) / alpha_t)
    assert torch.equal(found[:, 3:], plain(LABEL, x_t, t)[:, 3:])


def test_rescaling_acts_on_the_guided_channels_only(x_t: Tensor, t: Tensor) -> None:
    settings = {"rescale": 0.7, "interval": (0.2, 50.0)}
    found = guided(LabeledDenoiser(), 3.0, num_channels=2, **settings)(x_t, t, Condition(LABEL)).x_0
    first_channels = guided(LabeledDenoiser(), 3.0, **settings)(x_t[:, :2], t, Condition(LABEL)).x_0
    torch.testing.assert_close(found[:, :2], first_channels)
    assert torch.equal(found[:, 2:], plain(LABEL, x_t, t)[:, 2:])


def test_autoguidance_applies_to_the_guided_channels_only(x_t: Tensor, t: Tensor) -> None:
    guidable = Guidable(lambda x, t, condition: Estimate((x / 2).sin()), PROCESS, Epsilon())
    guide = lambda x, t, condition: Estimate((x / 3).cos())  # noqa: E731
    found = Autoguidance(guidable, guide, Strength(2.5, num_channels=1))(x_t, t, Condition(LABEL)).x_0
    torch.testing.assert_close(found[:, :1], 2.5 * (x_t[:, :1] / 2).sin() - 1.5 * (x_t[:, :1] / 3).cos())
    assert torch.equal(found[:, 1:], (x_t[:, 1:] / 2).sin())


def test_guidance_of_all_channels_is_the_default_to_the_bit(x_t: Tensor, t: Tensor) -> None:
    all_channels = guided(LabeledDenoiser(), 3.0, num_channels=3)(x_t, t, Condition(LABEL)).x_0
    assert torch.equal(all_channels, estimate(3.0, x_t, t))
    assert Strength(3.0, num_channels=3).protocol(channels=3) == Strength(3.0).protocol(channels=3)
    assert Strength(3.0).protocol(channels=3) == {"guidance_scale": 3.0}


def test_the_fingerprint_contains_the_number_of_guided_channels_if_guidance_is_active() -> None:
    expected = {"name": "Strength", "interval": None, "rescale": 0.0, "num_channels": 3}
    assert Strength(1.5, num_channels=3).protocol(channels=4) == {"guidance_scale": 1.5, "guidance": expected}
    assert Strength(1.0, num_channels=3).protocol(channels=4) == {"guidance_scale": 1.0}


def test_more_guided_channels_than_the_images_have_are_refused(x_t: Tensor, t: Tensor) -> None:
    message = r"num_channels of the guidance must be in 1\.\.[23] \(the channels of the images or latents\), got 4"
    with pytest.raises(ValueError, match=message):
        guided(LabeledDenoiser(), 2.0, num_channels=4)(x_t, t, Condition(LABEL))
    with pytest.raises(ValueError, match=message):
        Guidance(Strength(num_channels=4))(denoiser(), Labels(3, dropout=0.1))
