import diffusers
import pytest
import torch

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.edits import Walk
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.generation.seeded_images import SeededImages, generate_with_frames
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.networks import DiT
from diffusion_lab.randomness import Draws, Purpose
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


def module() -> DiffusionModule:
    plain = small_module()
    network = DiT(4, 4, resolution=8, channels=16, depth=1, num_heads=2)
    parts = {name: getattr(plain, name) for name in ("prediction", "objective", "times", "optimizer", "sampler")}
    ema = lambda trained: type(plain.ema)(trained, plain.ema.decays)  # noqa: E731
    return DiffusionModule(network, plain.process, ema=ema, space=latents(), **parts)


IMAGES = torch.rand(3, 3, 16, 16) * 2 - 1


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
