import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.process import CosineSchedule, GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, ClassifierFreeGuidance

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


def estimate(guidance_scale: float, x_t: Tensor, t: Tensor) -> Tensor:
    return ClassifierFreeGuidance(LabelledDenoiser(), NULL, guidance_scale)(x_t, t, Condition(LABEL)).x_0


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
    ClassifierFreeGuidance(denoiser, NULL, 2.0)(x_t, t, Condition(LABEL, augmentation))
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
    guided = (1 + w) * with_label - w * without
    torch.testing.assert_close((x_t - alpha_t * estimate(3.0, x_t, t)) / sigma_t, guided, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_the_reverse_variance_is_that_of_the_network_with_the_label(
    guidance_scale: float, x_t: Tensor, t: Tensor
) -> None:
    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        says = condition.label.double().view(-1, 1, 1, 1).expand_as(x_t)
        return Estimate(x_t / 2, says)

    found = ClassifierFreeGuidance(denoiser, NULL, guidance_scale)(x_t, t, Condition(LABEL)).variance_output
    assert found is not None
    assert torch.equal(found, LABEL.double().view(-1, 1, 1, 1).expand_as(x_t))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_a_network_that_says_nothing_of_the_variance_still_says_nothing(
    guidance_scale: float, x_t: Tensor, t: Tensor
) -> None:
    guided = ClassifierFreeGuidance(LabelledDenoiser(), NULL, guidance_scale)
    assert guided(x_t, t, Condition(LABEL)).variance_output is None


@pytest.mark.parametrize(("guidance_scale", "size"), [(0.0, 10), (1.0, 5), (3.0, 10)])
def test_the_network_is_called_once_a_step_for_both_halves_only_where_both_are_needed(
    guidance_scale: float, size: int
) -> None:
    denoiser = LabelledDenoiser()
    guided = ClassifierFreeGuidance(denoiser, NULL, guidance_scale)
    DDIM(PROCESS, num_steps=7).sample(guided, ImageNoise(range(5), (3, 8, 6)), Condition(LABEL))
    assert denoiser.asked == [size] * 7


def test_guidance_without_labels_is_refused(x_t: Tensor, t: Tensor) -> None:
    with pytest.raises(ValueError, match="label must be given where guidance_scale is not 1, got None"):
        ClassifierFreeGuidance(LabelledDenoiser(), NULL, 2.0)(x_t, t, Condition())


def test_guidance_of_a_network_that_has_no_null_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropped labels .*conditioning.dropout above 0.* no null label"):
        ClassifierFreeGuidance(LabelledDenoiser(), Labels(num_classes=3).null, 2.0)
