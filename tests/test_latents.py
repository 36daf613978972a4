import diffusers
import pytest
import torch

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.data.images import Images
from diffusion_lab.edits import Walk
from diffusion_lab.generation.condition_images import MaskedImages
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.generation.seeded_images import SeededImages, generate_with_frames
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.masking import Halves
from diffusion_lab.networks import Condition, DiT
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import Draws, ImageNoise, Purpose
from diffusion_lab.runs.cost.operations import Rates
from diffusion_lab.runs.cost.sampling import seconds_per_image
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import small_module


def latents(scale: float = 0.5, shift: float = 0.1) -> Latents:
    """Return an untrained autoencoder of 3 x 16 x 16 images with 4 x 8 x 8 latents."""
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(4, 4), latent_channels=4, norm_num_groups=2, layers_per_block=1,
        down_block_types=2 * ("DownEncoderBlock2D",), up_block_types=2 * ("UpDecoderBlock2D",),
    )  # fmt: skip
    return Latents(autoencoder, scale, shift)


def module(condition_channels: int = 0) -> DiffusionModule:
    """Return an untrained module for these latents; with condition images, its weights are random."""
    plain = small_module()
    network = DiT(4, 4, resolution=8, channels=16, depth=1, num_heads=2, condition_channels=condition_channels)
    if condition_channels:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    parts = {name: getattr(plain, name) for name in ("prediction", "objective", "times", "optimizer", "sampler")}
    ema = lambda trained: type(plain.ema)(trained, plain.ema.decays)  # noqa: E731
    return DiffusionModule(network, plain.process, ema=ema, space=latents(), **parts)


IMAGES = torch.rand(3, 3, 16, 16) * 2 - 1
KNOWN = (torch.arange(256).view(16, 16) % 7 > 0).expand(3, 1, 16, 16)
"""Masks; the first pixel of some blocks of 2 x 2 pixels is known although another one is in the hole."""

CONDITION_IMAGES = {
    "image with a hole": torch.cat([torch.where(KNOWN, IMAGES, 0.0), KNOWN.float()], dim=1),
    "color image": -IMAGES,
    "gray image": IMAGES[:, :1],
}


def test_latents_are_shifted_and_scaled_posterior_samples() -> None:
    space = latents()
    posterior = space.autoencoder.encode(IMAGES).latent_dist
    noise = torch.randn(space.noise_shape(IMAGES))
    torch.testing.assert_close(space.encode(IMAGES), (posterior.mean - 0.1) * 0.5)
    torch.testing.assert_close(space.encode(IMAGES, noise), (posterior.mean + posterior.std * noise - 0.1) * 0.5)
    z = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(space.decode(z), space.autoencoder.decode(z / 0.5 + 0.1).sample)


def test_pixels_do_not_encode() -> None:
    assert Pixels().encode(IMAGES) is IMAGES
    assert Pixels().decode(IMAGES) is IMAGES
    assert Pixels().noise_shape(IMAGES) is None


def test_training_adds_noise_to_the_latents_of_the_step() -> None:
    trained, draws = module(), Draws(0, 0, range(3), 3)
    received: list[torch.Tensor] = []
    trained.network.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    trained.training_step(ImageBatch(IMAGES, torch.zeros(3, dtype=torch.int64), draws), 0)
    assert isinstance(trained.space, Latents)
    x_0 = trained.space.encode(IMAGES, draws.noise(IMAGES, Purpose.LATENT, (3, 4, 8, 8)))
    t, _ = trained.times.sample(draws)
    torch.testing.assert_close(received[0], trained.process.q_sample(x_0, t, draws.noise(like=x_0)))


def test_the_autoencoder_is_neither_in_checkpoints_nor_trained() -> None:
    trained = module()
    assert not any("autoencoder" in name for name in trained.state_dict())
    assert isinstance(trained.space, Latents)
    assert not any(parameter.requires_grad for parameter in trained.space.autoencoder.parameters())


def test_samples_and_animation_frames_are_decoded() -> None:
    trained = module()
    images = SeededImages(trained, batch_size=2)
    assert images.shape == (3, 16, 16)
    generated, frames = generate_with_frames(images, [range(2)], 3, lambda done: None)
    assert generated.shape == (2, 3, 16, 16)
    assert [frame.shape for frame in frames] == [(2, 3, 16, 16)] * 3
    assert torch.equal(frames[-1], generated)
    assert images.protocol()["space"]["scale"] == 0.5


def test_a_scale_of_0_is_rejected() -> None:
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        latents(scale=0)


def test_frames_of_a_walk_in_latent_space_are_decoded_and_start_with_a_sample() -> None:
    seeded = SeededImages(module(), batch_size=3)
    frames = FrameImages(seeded, Walk(num_frames=3, seeds=[2, 5]))
    assert frames.noise(0).shape == (4, 8, 8)
    images = frames.generate(range(3))
    assert images.shape == (3, 3, 16, 16)
    assert int((images[0].int() - seeded.generate(range(2, 3))[0].int()).abs().max()) <= 1


def expected_latents(kind: str) -> torch.Tensor:
    """Return the scaled posterior mean of the condition images, and the masks of blocks of 2 x 2 pixels."""
    images = {"color image": -IMAGES, "gray image": IMAGES[:, :1].repeat(1, 3, 1, 1)}
    images["image with a hole"] = IMAGES * KNOWN
    encoded = (latents().autoencoder.encode(images[kind]).latent_dist.mean - 0.1) * 0.5
    blocks = KNOWN.reshape(3, 1, 8, 2, 8, 2).all(dim=5).all(dim=3)
    return torch.cat([encoded, blocks.float()], dim=1) if kind == "image with a hole" else encoded


@pytest.mark.parametrize("kind", CONDITION_IMAGES)
def test_the_loss_and_the_samples_are_those_of_a_network_that_receives_encoded_condition_images(kind: str) -> None:
    expected = expected_latents(kind)
    trained, draws = module(expected.shape[1]), Draws(0, 0, range(3), 3)
    batch = ImageBatch(IMAGES, torch.zeros(3, dtype=torch.int64), draws, image=CONDITION_IMAGES[kind])
    loss = trained.training_step(batch, 0)
    x_0 = trained.space.encode(IMAGES, draws.noise(IMAGES, Purpose.LATENT, (3, 4, 8, 8)))
    noise, (t, _) = draws.noise(like=x_0), trained.times.sample(draws)
    network_time = trained.process.schedule.network_time(t).float()
    x_t = trained.process.q_sample(x_0, t, noise)
    output = trained.network(x_t, network_time, Condition(image=expected))
    torch.testing.assert_close(loss, (output - noise).square().mean())
    unconditional = trained.network(x_t, network_time, Condition(image=torch.zeros_like(expected)))
    assert not torch.allclose(output, unconditional, atol=0.01)

    samples = trained.sample(3, Condition(image=CONDITION_IMAGES[kind]))
    latent = trained.sampler.sample(trained.denoiser(), ImageNoise(3, (4, 8, 8)), Condition(image=expected))
    torch.testing.assert_close(samples, trained.space.decode(latent))


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (5, None, r"`image` must be \[B, 4, 16, 16\] \(pixels, which are encoded\) for this network, got None"),
        (5, (2, 3, 16, 16), r"must be \[B, 4, 16, 16\] .* got \[2, 3, 16, 16\]"),
        (4, (2, 4, 16, 16), r"must be \[B, 3 or 1, 16, 16\] .* got \[2, 4, 16, 16\]"),
        (4, (2, 3, 8, 8), r"must be \[B, 3 or 1, 16, 16\] .* got \[2, 3, 8, 8\]"),
        (3, (2, 3, 16, 16), "condition_channels of the network must be 4 or, with a mask, 5 for .* latents, got 3"),
        (0, (2, 3, 16, 16), r"`image` must be None for this network, got \[2, 3, 16, 16\]"),
    ],
)
def test_condition_images_of_another_shape_are_refused(
    channels: int, shape: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module(channels).sample(2, Condition(image=None if shape is None else torch.zeros(shape)))


def test_samples_show_their_condition_images_in_pixels_and_a_source_of_another_kind_is_refused() -> None:
    source = MaskedImages(Images(to_uint8(IMAGES), torch.zeros(3, dtype=torch.int64)), "train", Halves())
    images = SeededImages(module(5), batch_size=2, condition_images=source)
    pictures = source.pictures(range(2))
    assert pictures.shape == (2, 3, 16, 16)
    assert int((pictures == 128).all(dim=1).sum()) == 2 * 128  # gray halves
    condition = source.condition(range(2), None, torch.device("cpu"))
    assert torch.equal(images.generate(range(2)), to_uint8(images.module.sample(2, condition)))
    assert seconds_per_image(images, Rates(1e9, 1e9), is_half=False) > 0
    with pytest.raises(ValueError, match=r"must have 4 channels .* got images with 5 channels after they are encoded"):
        SeededImages(module(4), condition_images=source)
