import torch

from diffusion_lab.samplers import NoClipping, StaticClipping


def test_static_clipping_holds_every_pixel_between_minus_1_and_1() -> None:
    x_0 = torch.tensor([-3.0, -1.0, -0.2, 0.7, 1.0, 1.5]).view(1, 1, 2, 3)
    assert StaticClipping()(x_0).flatten().tolist() == torch.tensor([-1.0, -1.0, -0.2, 0.7, 1.0, 1.0]).tolist()


def test_no_clipping_leaves_estimates_as_they_are() -> None:
    x_0 = 3 * torch.randn(5, 3, 8, 6)
    assert torch.equal(NoClipping()(x_0), x_0)
