"""Products with Jacobians, and conjugate gradients for one system per image."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.denoiser import Estimate
from diffusion_lab.inverse_problems import AreaDownsampling, GaussianBlur, Measurement
from diffusion_lab.inverse_problems.conjugate_gradients import conjugate_gradients
from diffusion_lab.inverse_problems.linearization import Linearization
from diffusion_lab.latents import Latents
from diffusion_lab.networks import Condition


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def systems(num_images: int, size: int) -> tuple[Tensor, Tensor]:
    """Return one positive definite matrix per image and the right sides."""
    factors = normal(num_images, size, size)
    return factors @ factors.mT + torch.eye(size, dtype=torch.float64), normal(num_images, size, seed=1)


def solve(matrices: Tensor, right_side: Tensor, num_iterations: int) -> Tensor:
    return conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), right_side, num_iterations)


def test_conjugate_gradients_solve_the_system_of_each_image_in_as_many_iterations_as_unknowns() -> None:
    matrices, right_side = systems(5, 7)
    solution = solve(matrices, right_side, 14)
    torch.testing.assert_close(solution, torch.linalg.solve(matrices, right_side), rtol=0, atol=1e-9)


def test_the_solution_of_an_image_is_the_same_alone_and_after_its_iterations_have_stopped() -> None:
    matrices, right_side = systems(5, 7)
    matrices[0] = torch.eye(7)  # solved in one iteration
    right_side[1] = 0
    batch = solve(matrices, right_side, 40)
    for k in range(5):
        alone = solve(matrices[k : k + 1], right_side[k : k + 1], 40)
        torch.testing.assert_close(batch[k : k + 1], alone, rtol=0, atol=1e-12)
    assert torch.equal(batch[1], torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(batch[0], right_side[0], rtol=0, atol=1e-12)


def test_conjugate_gradients_of_a_singular_and_of_an_indefinite_system_remain_finite() -> None:
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    solution = conjugate_gradients(lambda v: v @ singular, torch.tensor([[1.0, 1.0, 0.0]]).double(), 20)
    torch.testing.assert_close(solution, torch.tensor([[1.0, 0.5, 0.0]]).double(), rtol=0, atol=1e-12)
    indefinite = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    solution = conjugate_gradients(lambda v: v @ indefinite, torch.ones(2, 3).double(), 20)
    assert torch.equal(solution, torch.zeros(2, 3).double())  # not positive along the first direction


def denoise(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
    return Estimate(x_0=(0.7 * x_t).tanh())


def test_the_estimate_and_its_gradient_are_those_of_the_denoiser() -> None:
    x_t, u = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    measurement = Measurement(AreaDownsampling((1, 4, 4), 2), normal(2, 1, 2, 2))
    with torch.no_grad():
        at_x_t = Linearization.at(denoise, x_t, torch.ones(2), Condition(), measurement)
        product = at_x_t.to_x_t(u)
    torch.testing.assert_close(at_x_t.estimate.x_0, (0.7 * x_t).tanh())
    torch.testing.assert_close(product, 0.7 * (1 - (0.7 * x_t).tanh() ** 2) * u)
    torch.testing.assert_close(at_x_t.residual, measurement.y - measurement.operator.forward((0.7 * x_t).tanh()))


class AttentionDecoder(nn.Module):
    """A decoder with the interface of `AutoencoderKL`, with the operations of its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.conv_out, self.dtype = nn.Conv2d(8, 3, 3, padding=1), torch.float64

    def decode(self, latents: Tensor) -> SimpleNamespace:
        x = self.norm(self.conv_in(latents))
        tokens = x.flatten(2).mT
        attended = F.scaled_dot_product_attention(tokens, tokens, tokens).mT.view_as(x)
        return SimpleNamespace(sample=self.conv_out(F.interpolate(F.silu(x + attended), scale_factor=2.0)))


def autoencoder_of_diffusers() -> nn.Module:
    import diffusers

    autoencoder: nn.Module = diffusers.AutoencoderKL(
        block_out_channels=(4, 4), latent_channels=4, norm_num_groups=2, layers_per_block=1,
        down_block_types=2 * ("DownEncoderBlock2D",), up_block_types=2 * ("UpDecoderBlock2D",),
    )  # fmt: skip
    return autoencoder


@pytest.mark.parametrize("build", [AttentionDecoder, pytest.param(autoencoder_of_diffusers, marks=pytest.mark.full)])
def test_measurements_of_decoded_latents_are_linearized_at_the_estimate(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    decode = Latents(build().double(), 0.5, 0.1).decode
    x_t, operator = normal(2, 4, 4, 4), GaussianBlur((3, 8, 8), 0.7)
    measurement = Measurement(operator, normal(2, 3, 8, 8), 0.1, decode)
    at_x_t = Linearization.at(denoise, x_t, torch.ones(2), Condition(), measurement)
    x_0, u, v, step = at_x_t.estimate.x_0, normal(2, 4, 4, 4, seed=1), normal(2, 3, 8, 8, seed=2), 1e-5
    with torch.no_grad():
        difference = operator.forward(decode(x_0 + step * u) - decode(x_0 - step * u)) / (2 * step)
    torch.testing.assert_close(at_x_t.forward(u), difference, rtol=1e-6, atol=1e-6)
    left, right = (at_x_t.forward(u) * v).flatten(1).sum(1), (u * at_x_t.adjoint(v)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
