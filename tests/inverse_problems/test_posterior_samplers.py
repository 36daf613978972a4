"""Properties of all posterior samplers: known pixels, independence of the batch, precision, latents and refusals."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate
from diffusion_lab.errors import UserError
from diffusion_lab.guidance import ClassifierFreeGuidance, Guidable, Strength
from diffusion_lab.inverse_problems import (
    DDNM,
    DDRM,
    DPS,
    MMPS,
    AreaDownsampling,
    GaussianBlur,
    Inpainting,
    LinearOperator,
    Measurement,
    PiGDM,
    PosteriorSampler,
    RePaint,
    Replace,
)
from diffusion_lab.inverse_problems.posterior import Steps
from diffusion_lab.networks import Blocks, Condition, Labels, UNet
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    GaussianProcess,
    LearnedRange,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise, Purpose
from diffusion_lab.samplers import (
    DDIM,
    RK45,
    Ancestral,
    DPMSolver,
    KarrasTimes,
    Sampler,
    TimeGrid,
    UniformTimes,
    UniPC,
)
from support.every_operator import hole_of_each_image
from support.every_sampler import SAMPLERS, Case, every_sampler
from support.oracles import GaussianOracle, MixtureOracle

SHAPE = (2, 4, 6)
COSINE = GaussianProcess(CosineSchedule())
METHODS: dict[str, PosteriorSampler] = {
    "replace": Replace(),
    "repaint": RePaint(jump_length=2, num_resamples=2),
    "dps": DPS(),
    "pigdm": PiGDM(),
    "pigdm, paper": PiGDM(step_weights="paper"),
    "mmps": MMPS(),
    "ddrm": DDRM(),
    "ddnm": DDNM(),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_gradient_method = pytest.mark.parametrize("method", [DPS(), PiGDM(), PiGDM(step_weights="paper"), MMPS(2)])


def images(batch_size: int, seed: int = 0) -> Tensor:
    return torch.rand(batch_size, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sampler_of(method: PosteriorSampler, process: GaussianProcess = COSINE, **settings: Any) -> DDIM:
    """Return a sampler that the method takes."""
    return DDIM(process, num_steps=settings.pop("num_steps", 8), eta=0.0 if method.name == "ddrm" else 1.0, **settings)


@pytest.mark.parametrize("method", [Replace(), RePaint(2, 2), DDNM(), DDRM(), MMPS(20)])
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (CosineSchedule(), UniformTimes()),
        (LinearSchedule(), UniformTimes()),
        (VPSchedule(), UniformTimes()),
        (EDMSchedule(), KarrasTimes()),
        (RectifiedFlowSchedule(), UniformTimes()),
    ],
)
def test_known_pixels_are_those_of_y_without_noise(
    method: PosteriorSampler, schedule: NoiseSchedule, grid: TimeGrid
) -> None:
    hole, process = hole_of_each_image(3, SHAPE), GaussianProcess(schedule)
    measurement = Measurement.of(Inpainting(SHAPE, hole), images(3))
    sampler = sampler_of(method, process, time_grid=grid)
    samples = method.sample(sampler, MixtureOracle(process), measurement, ImageNoise(3, SHAPE))
    known = ~hole.expand_as(samples)
    torch.testing.assert_close(samples[known], images(3)[known], rtol=0, atol=2e-6)
    assert float((samples[~known] - images(3)[~known]).abs().mean()) > 0.1


@every_method
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_an_image_does_not_depend_on_the_other_images_of_its_batch(method: PosteriorSampler, noise_std: float) -> None:
    if method.name == "repaint" and noise_std:
        return
    operator, rows = Inpainting(SHAPE, hole_of_each_image(4, SHAPE)), torch.tensor([2])
    noise = ImageNoise(4, SHAPE, purpose=Purpose.MEASUREMENT)
    measurement, denoiser = Measurement.of(operator, images(4), noise_std, noise), MixtureOracle(COSINE)
    batch = method.sample(sampler_of(method), denoiser, measurement, ImageNoise(4, SHAPE))
    alone = method.sample(sampler_of(method), denoiser, measurement.select(rows), ImageNoise([2], SHAPE))
    torch.testing.assert_close(alone, batch[2:3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [MMPS(), DDNM()])
def test_rows_that_an_adaptive_sampler_selects_keep_their_measurements(method: PosteriorSampler) -> None:
    operator = Inpainting(SHAPE, hole_of_each_image(4, SHAPE))
    measurement, denoiser = Measurement.of(operator, images(4)), MixtureOracle(COSINE)
    samples = method.sample(RK45(COSINE, 2, rtol=0.1, atol=0.1), denoiser, measurement, ImageNoise(4, SHAPE))
    assert float(measurement.inconsistency(samples).max()) < 1e-5


@every_sampler
@every_method
def test_every_method_takes_a_sampler_or_refuses_it_before_the_denoiser_is_evaluated(
    case: Case, method: PosteriorSampler
) -> None:
    sampler, calls = case.build(COSINE, num_steps=6), 0
    if isinstance(sampler, RK45):
        sampler = replace(sampler, rtol=0.1, atol=0.1)
    oracle = GaussianOracle(COSINE, 0.0, 0.5)

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        nonlocal calls
        calls += 1
        return oracle(x_t, t, condition)

    measurement = Measurement.of(AreaDownsampling(SHAPE, 2), images(2))
    steps: list[int] = []

    def sample() -> Tensor:
        noise = ImageNoise(2, SHAPE)
        return method.sample(sampler, denoiser, measurement, noise, on_step=lambda step, x_t, x_0: steps.append(step))

    if not takes(method, sampler, measurement):
        with pytest.raises(UserError, match=f"`sampler(.eta)?` must be .*posterior={method.name}"):
            sample()
        assert calls == 0
        return
    samples = sample()
    assert samples.shape == (2, *SHAPE)
    assert bool(samples.isfinite().all())
    assert steps == list(range(1, method.num_steps(sampler) + 1))
    # The numbers of RK45, and of RePaint with a sampler whose last step differs, are typical numbers.
    typical = isinstance(sampler, RK45) or method.name == "repaint"
    assert method.num_evaluations(sampler) == pytest.approx(calls, rel=1.0 if typical else 0)


def test_the_samplers_that_each_method_takes_are_those_that_it_states() -> None:
    measurement = Measurement.of(AreaDownsampling(SHAPE, 2), images(2))
    assert accepted(PiGDM(), measurement) == accepted(MMPS(), measurement) == accepted(DDNM(), measurement)
    assert accepted(PiGDM(), measurement) == {type(case.build(COSINE, num_steps=6)) for case in SAMPLERS.values()}
    assert accepted(Replace(), measurement) == accepted(PiGDM(), measurement) - {RK45, UniPC}
    assert accepted(RePaint(), measurement) == accepted(Replace(), measurement)
    assert accepted(DPS(), measurement) == {Ancestral, DDIM}
    assert accepted(PiGDM(step_weights="paper"), measurement) == accepted(DDRM(), measurement) == {DDIM}
    noisy = replace(measurement, noise_std=0.1)
    assert accepted(DDNM(), noisy) == {Ancestral, DDIM}


def accepted(method: PosteriorSampler, measurement: Measurement) -> set[type[Sampler]]:
    found = set()
    for case in SAMPLERS.values():
        sampler = case.build(COSINE, num_steps=6)
        if takes(method, sampler, measurement):
            found.add(type(sampler))
    return found


def takes(method: PosteriorSampler, sampler: Sampler, measurement: Measurement) -> bool:
    try:
        method.require(sampler, measurement)
    except UserError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """An operator without known singular values."""

    image_shape: tuple[int, int, int]
    matrix: Tensor

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (len(self.matrix),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).view(-1, *self.image_shape)


DENSE = Dense(SHAPE, torch.randn(9, 48, generator=torch.Generator().manual_seed(0)) / 7)
LATENTS = Measurement(DENSE, torch.zeros(2, 9), decode=lambda x_0: x_0)


@pytest.mark.parametrize(
    ("method", "sampler", "measurement", "message"),
    [
        (DPS(), DPMSolver(COSINE), None, r"`sampler` must be Ancestral or DDIM for posterior=dps, got DPMSolver\."),
        (DDRM(), Ancestral(COSINE), None, r"`sampler` must be DDIM for posterior=ddrm, got Ancestral\."),
        (DDRM(), DDIM(COSINE, eta=1.0), None, r"`sampler.eta` must be 0 for posterior=ddrm, .*, got 1.0\."),
        (DDNM(), DDIM(COSINE), 0.1, r"`sampler.eta` must be above 0 for posterior=ddnm with measurement noise"),
        (DDNM(), UniPC(COSINE), 0.1, r"Ancestral for posterior=ddnm with measurement noise, got UniPC\."),
        (DDNM(), Ancestral(COSINE, variance=LearnedRange()), 0.1, r"must be fixed for .*, got LearnedRange\."),
        (RePaint(), DDIM(COSINE), 0.1, r"task.noise must be 0 for posterior=repaint, got 0.1"),
        (Replace(), UniPC(COSINE), None, r"fixed steps other than unipc for posterior=replace, .*, got UniPC\."),
        (Replace(), RK45(COSINE), None, r"fixed steps other than unipc for posterior=replace, .*, got RK45\."),
        (PiGDM(step_weights="paper"), UniPC(COSINE), None, r"DDIM for posterior=pigdm with step_weights=paper"),
        (DDRM(), DDIM(COSINE), LATENTS, r"dps, pigdm or mmps for measurements of decoded latents, got ddrm"),
        (DDNM(), DDIM(COSINE), LATENTS, r"dps, pigdm or mmps for measurements of decoded latents, got ddnm"),
        (
            Replace(),
            DDIM(COSINE),
            replace(LATENTS, decode=None),
            r"without known singular values, got replace for Dense",
        ),
    ],
)
def test_a_combination_that_a_method_does_not_take_is_refused(
    method: PosteriorSampler, sampler: Sampler, measurement: Measurement | float | None, message: str
) -> None:
    if not isinstance(measurement, Measurement):
        area = AreaDownsampling(SHAPE, 2)
        measurement = Measurement(area, area.forward(images(2)), measurement or 0.0)
    with pytest.raises(UserError, match=message):
        method.require(sampler, measurement)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MMPS(0), "num_iterations must be at least 1, got 0"),
        (lambda: PiGDM("mean"), "step_weights must be exact or paper, got mean"),
        (lambda: PiGDM(num_iterations=0), "num_iterations must be at least 1, got 0"),
        (lambda: DPS(-1.0), "step_size must be a finite number of at least 0, got -1.0"),
        (lambda: DDRM(eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: RePaint(jump_length=0), "jump_length must be at least 1, got 0"),
        (lambda: Measurement(DENSE, torch.zeros(2, 8)), r"`y` must have the shape \[B, 9\] of measurements by Dense"),
        (lambda: Measurement(DENSE, torch.zeros(2, 9), -1), "noise of the measurement must be a finite number"),
        (lambda: Measurement.of(DENSE, images(2), 0.1), "`noise` must be given if noise_std is above 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_denoiser_without_gradient_is_refused_by_methods_that_use_it() -> None:
    measurement = Measurement.of(AreaDownsampling(SHAPE, 2), images(2))
    constant: DenoiserLike = lambda x_t, t, condition: Estimate(torch.zeros_like(x_t))  # noqa: E731
    with pytest.raises(ValueError, match="`denoiser` must return an x_0 that is a differentiable function of x_t"):
        PiGDM().sample(DDIM(COSINE), constant, measurement, ImageNoise(2, SHAPE))


def network(*, checkpointing: bool = False) -> UNet:
    """Return a network of 3 classes with random weights, of which none is 0."""
    torch.manual_seed(0)
    unet = UNet(
        2, 2, resolution=8, channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
        blocks=Blocks(num_groups=4, checkpointing=checkpointing), labels=Labels(3, dropout=0.1),
    )  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


def sample_by_network(method: PosteriorSampler, unet: UNet, *, guided: bool = True) -> Tensor:
    shape, denoiser = (2, 8, 8), Denoiser(unet, COSINE, Epsilon())
    blur = GaussianBlur(shape, 0.8)
    y = torch.linspace(-0.5, 0.5, 128).view(1, *shape).expand(2, -1, -1, -1)
    guide = ClassifierFreeGuidance(Guidable.from_denoiser(denoiser), 3, Strength(8.0)) if guided else denoiser
    return method.sample(
        sampler_of(method, num_steps=3), guide, Measurement(blur, y, 0.1), ImageNoise(2, shape), torch.tensor([0, 2])
    )


@every_gradient_method
def test_gradients_are_computed_in_inference_mode_and_with_checkpointing(method: PosteriorSampler) -> None:
    unet = network()
    expected = sample_by_network(method, unet)
    with torch.inference_mode():
        torch.testing.assert_close(sample_by_network(method, unet), expected, rtol=0, atol=1e-6)
    recomputed = sample_by_network(method, network(checkpointing=True))
    torch.testing.assert_close(recomputed, expected, rtol=0, atol=1e-5)
    assert not expected.requires_grad
    unguided = sample_by_network(method, unet, guided=False)
    assert float((unguided - expected).abs().mean()) > 1e-3


@every_gradient_method
def test_gradients_of_a_network_in_bfloat16_are_those_in_float32_up_to_rounding(method: PosteriorSampler) -> None:
    expected = sample_by_network(method, network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = sample_by_network(method, network())
    assert rounded.dtype == torch.float32
    assert float((rounded - expected).abs().mean() / expected.abs().mean()) < 0.05


@pytest.mark.parametrize("method", [DPS(), PiGDM(), MMPS(12)])
@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_measurements_of_decoded_latents_are_those_of_the_product_with_a_linear_decoder(
    method: PosteriorSampler, noise_std: float
) -> None:
    latent_shape, generator = (3, 2, 2), torch.Generator().manual_seed(1)
    decoder = torch.randn(48, 12, generator=generator, dtype=torch.float64) / 4
    y = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    of_latents = Measurement(DENSE, y, noise_std, decode=lambda x_0: (x_0.flatten(1) @ decoder.mT).view(-1, *SHAPE))
    product = Measurement(Dense(latent_shape, DENSE.matrix.double() @ decoder), y, noise_std)
    noises = [Float64Noise(ImageNoise(2, latent_shape)) for _ in range(2)]
    one, other = (
        method.sample(sampler_of(method), GaussianOracle(COSINE, 0.1, 0.7), measurement, noise)
        for measurement, noise in zip((of_latents, product), noises, strict=True)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


@dataclass
class Float64Noise:
    """Noise in float64."""

    noise: ImageNoise

    def draw(self) -> Tensor:
        return self.noise.draw().double()


def test_the_states_of_repaint_are_those_of_its_paper() -> None:
    """Lugmayr et al. (2022): T = 250, jump length 10, and 10 resamples, with jumps from 24 of the states."""
    states = RePaint(jump_length=10, num_resamples=10).states(250)
    assert len(states) - 1 == 250 + 24 * 9 * 10 + 24 * 9  # steps, repeated steps, and jumps
    assert states[-12:] == [239, 240, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250]
    assert states[:22] == [*range(20), 9, 10]
    assert RePaint(jump_length=10, num_resamples=1).states(250) == list(range(251))


def test_a_multistep_sampler_does_not_extrapolate_over_a_jump() -> None:
    steps = Steps(DPMSolver(COSINE, 6), GaussianOracle(COSINE), ImageNoise(2, SHAPE), None)
    x_1, _ = steps.step(steps.start(), 0)
    x_2, _ = steps.step(x_1, 1)
    x_1 = steps.jump_back(x_2, 2, 1)
    first_order = Steps(DPMSolver(COSINE, 6), GaussianOracle(COSINE), ImageNoise(2, SHAPE), None)
    assert torch.equal(steps.step(x_1, 1)[0], first_order.step(x_1, 1)[0])


def test_replace_is_repaint_without_jumps() -> None:
    measurement, denoiser = Measurement.of(AreaDownsampling(SHAPE, 2), images(2)), GaussianOracle(COSINE)
    one, other = (
        method.sample(Ancestral(COSINE, 6), denoiser, measurement, ImageNoise(2, SHAPE))
        for method in (Replace(), RePaint(num_resamples=1))
    )
    assert torch.equal(one, other)


def test_ddrm_with_a_weight_of_0_ignores_measurements_with_less_noise_than_x_s() -> None:
    measurement, denoiser = Measurement.of(AreaDownsampling(SHAPE, 2), images(2)), GaussianOracle(COSINE, 0.0, 0.3)
    samples = DDRM(eta_b=0.0).sample(DDIM(COSINE, 8), denoiser, measurement, ImageNoise(2, SHAPE))
    assert float(measurement.inconsistency(samples).min()) > 0.1


def test_the_inconsistency_of_the_measured_image_is_the_noise() -> None:
    operator = Inpainting((3, 32, 32), torch.arange(32).expand(32, 32) < 8)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    measurement = Measurement.of(operator, x, 0.1, ImageNoise(2, (3, 32, 32), purpose=Purpose.MEASUREMENT))
    assert measurement.inconsistency(x).tolist() == pytest.approx([0.1, 0.1], rel=0.05)
