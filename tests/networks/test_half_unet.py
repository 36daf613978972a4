from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.networks import Blocks, HalfUNet
from diffusion_lab.networks.half_unet import AttentionPooling

BLOCKS = Blocks(num_groups=4, scale_shift=True, resize="residual", head_channels=4)


def small(**options: Any) -> HalfUNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (8,)}
    return HalfUNet(2, 5, resolution=16, blocks=BLOCKS, num_blocks=1, **settings | options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x_t = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    return x_t, torch.tensor([0.0, 500.0, 999.0])


def trained(network: HalfUNet, num_steps: int = 2) -> HalfUNet:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(num_steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(*batch(step)), torch.tensor([0, 3, 4])))
        optimizer.step()
    return network


@pytest.mark.parametrize("options", [{}, {"patch_size": 2, "attention_resolutions": (4,)}])
def test_an_untrained_classifier_thinks_all_classes_equally_likely(options: dict[str, Any]) -> None:
    logits = small(**options)(*batch())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.zeros(3, 5))


def test_gradients_reach_every_parameter_after_two_steps() -> None:
    network = trained(small())
    network.zero_grad()
    network(*batch(2)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_time_and_image_each_change_the_answer() -> None:
    network, (x_t, time) = trained(small()).eval().requires_grad_(False), batch()
    answer = network(x_t, time)
    assert all(float((o - answer).abs().amin()) > 0 for o in (network(x_t, time + 100), network(x_t.flip(-1), time)))


def test_logits_leave_autocast_in_float32() -> None:
    network = trained(small()).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(*batch())
    assert answer.dtype == torch.float32
    assert not torch.equal(answer.bfloat16().float(), answer)


def test_pooling_is_what_the_mean_attends_to() -> None:
    torch.manual_seed(0)
    pool = AttentionPooling(8, 3, side=2, num_heads=2).double()
    nn.init.normal_(pool.out.weight)  # type: ignore[arg-type]
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(
        {
            "in_proj_weight": pool.qkv.weight,
            "in_proj_bias": pool.qkv.bias,
            "out_proj.weight": torch.eye(8),
            "out_proj.bias": torch.zeros(8),
        }
    )
    x = torch.randn(5, 8, 2, 2).double()
    tokens = x.flatten(2).mT
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + pool.positions
    expected = pool.out(attention(tokens[:, :1], tokens, tokens)[0][:, 0])
    torch.testing.assert_close(pool(x), expected)


def test_gradients_of_pooling_are_its_slopes() -> None:
    torch.manual_seed(0)
    pool = AttentionPooling(4, 3, side=2, num_heads=2).double()
    nn.init.normal_(pool.out.weight)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(pool, torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True))


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x_t must be \[B, 2, 16, 16\], got \[3, 1, 16, 16\]"):
        small()(torch.zeros(3, 1, 16, 16), torch.zeros(3))


def test_a_level_without_channels_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"channel_multipliers must be numbers above 0 .*, got \[1, -2\] for channels=32"
    ):
        HalfUNet(2, 3, resolution=16, channels=32, channel_multipliers=[1, -2])


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        HalfUNet(2, 1, resolution=16)
