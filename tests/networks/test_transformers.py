"""DiT and the pixel transformer: what both have to do, and what each is made of."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.networks import Condition, DiT, Labels, PixelTransformer
from diffusion_lab.networks.dit import DiTBlock, grid_positions
from diffusion_lab.networks.pixel_transformer import TransformerBlock, rotated, rotation

SMALL: dict[str, Any] = {"channels": 16, "depth": 2, "num_heads": 2, "labels": Labels(4, dropout=0.1), "patch_size": 4}
both = pytest.mark.parametrize("kind", [DiT, PixelTransformer])
Network = DiT | PixelTransformer


def small(kind: type[Network], **options: Any) -> Network:
    torch.manual_seed(0)
    return kind(5, 3, resolution=16, **SMALL | options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    x_t = torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(seed))
    return x_t, torch.tensor([0.0, 500.0, 999.0]), Condition(torch.tensor([0, 3, 4]))


def trained(network: Network, num_steps: int = 2) -> Network:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(num_steps):
        optimizer.zero_grad()
        (network(*batch(step)) - torch.ones(3, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    return network


@both
def test_an_untrained_transformer_answers_exactly_0(kind: type[Network]) -> None:
    answer = small(kind)(*batch())
    assert answer.dtype == torch.float32
    assert torch.equal(answer, torch.zeros(3, 3, 16, 16))


@both
def test_every_block_starts_as_nothing(kind: type[Network]) -> None:
    network, x, embedding = small(kind), torch.randn(3, 16, 16), torch.randn(3, 16)
    places = () if kind is DiT else (rotation(4, 8),)
    assert all(torch.equal(block(x, embedding, *places), x) for block in network.blocks)


@both
def test_gradients_reach_every_parameter_after_two_steps(kind: type[Network]) -> None:
    network = trained(small(kind))
    network.zero_grad()
    network(*batch(2)).square().mean().backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert unreached == []


@both
def test_time_label_image_and_place_each_change_the_answer(kind: type[Network]) -> None:
    network = trained(small(kind)).eval().requires_grad_(False)
    x_t, time, condition = batch()
    answer = network(x_t, time, condition)
    changed = [
        network(x_t, time + 100, condition),
        network(x_t, time, Condition(torch.tensor([1, 2, 0]))),
        network(x_t.roll(4, dims=-1), time, condition).roll(-4, dims=-1),
        network(x_t.roll(4, dims=-2), time, condition).roll(-4, dims=-2),
    ]
    assert all(float((other - answer).abs().amax(dim=(1, 2, 3)).min()) > 1e-6 for other in changed)


@both
def test_an_augmentation_changes_the_answer_of_its_image_and_0_is_none(kind: type[Network]) -> None:
    network = trained(small(kind, num_augmentation_channels=9)).eval().requires_grad_(False)
    x_t, time, condition = batch()
    answer, told = network(x_t, time, condition), torch.zeros(3, 9)
    assert torch.equal(network(x_t, time, replace(condition, augmentation=told)), answer)
    told[1, 4] = 1.0
    changed = (network(x_t, time, replace(condition, augmentation=told)) - answer).abs().amax(dim=(1, 2, 3))
    assert float(changed[1]) > 1e-6
    torch.testing.assert_close(changed[[0, 2]], torch.zeros(2))


@both
def test_a_low_resolution_image_is_told_beside_the_noisy_one(kind: type[Network]) -> None:
    network = trained(small(kind)).eval().requires_grad_(False)
    upsampler = small(kind, condition_channels=2).eval().requires_grad_(False)
    nn.init.normal_(upsampler.head.out.weight)
    x_t, time, condition = batch()
    answers = [upsampler(x_t, time, replace(condition, image=torch.randn(3, 2, 8, 8))) for _ in range(2)]
    assert float((answers[0] - answers[1]).abs().amax(dim=(1, 2, 3)).min()) > 1e-4
    with pytest.raises(ValueError, match="`image` must be None for this network"):
        network(x_t, time, replace(condition, image=torch.randn(3, 2, 8, 8)))


@both
def test_checkpointing_changes_neither_answers_nor_gradients(kind: type[Network]) -> None:
    plain, checkpointed = (trained(small(kind, checkpointing=on)) for on in (False, True))
    for network in (plain, checkpointed):
        network.zero_grad()
        network(*batch(2)).square().mean().backward()
    assert torch.equal(plain(*batch(3)), checkpointed(*batch(3)))
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@both
def test_answers_leave_autocast_in_float32(kind: type[Network]) -> None:
    network = trained(small(kind)).eval().requires_grad_(False)
    exact = network(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(*batch())
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, exact, rtol=0, atol=0.1 * float(exact.std()))
    assert not torch.equal(answer.bfloat16().float(), answer)


@both
def test_answers_stand_where_their_patches_are(kind: type[Network]) -> None:
    network = small(kind).requires_grad_(False)
    network.get_parameter("head.out.bias").copy_(torch.arange(48.0))  # the weights are 0
    answer = network(*batch())
    assert torch.equal(answer[0, 1, :4, :4], (16 + torch.arange(16.0)).view(4, 4))
    assert torch.equal(answer[:, :, 4:8, 12:], answer[:, :, :4, :4])


@both
@pytest.mark.parametrize("shape", [(3, 4, 16, 16), (3, 5, 8, 16)])
def test_images_of_another_shape_are_refused(kind: type[Network], shape: tuple[int, ...]) -> None:
    _, time, condition = batch()
    with pytest.raises(ValueError, match=r"x_t must be \[B, 5, 16, 16\], got \[3, "):
        small(kind)(torch.zeros(shape), time, condition)


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide resolution=16, got 3"),
        ({"num_heads": 3}, "num_heads must divide channels=16, got 3"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0, got 0.0"),
        ({"channels": 18, "num_heads": 2}, "channels must be at least 4 and divisible by 4 .* got 18"),
        ({"channels": -16}, "channels must be at least 4 and divisible by 4 .* got -16"),
        ({"num_heads": -2}, "num_heads must divide channels=16, got -2"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    kind: type[Network], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind, **options)


def test_heads_that_cannot_be_rotated_both_ways_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels / num_heads must be divisible by 4 .* got 6"):
        small(PixelTransformer, channels=12, num_heads=2)


def test_positions_are_sinusoids_of_the_column_and_then_of_the_row() -> None:
    positions = grid_positions(3, 8).view(3, 3, 8)
    for row in range(3):
        for column in range(3):
            expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            assert positions[row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_dit_block_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    block = DiTBlock(8, 2, mlp_ratio=4.0, dropout=0.0).double()
    nn.init.normal_(block.modulation.weight)  # type: ignore[arg-type]
    x, embedding = torch.randn(3, 5, 8).double(), torch.randn(3, 8).double()
    told = block.get_submodule("modulation")(F.silu(embedding))[:, None]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = told.chunk(6, dim=2)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(
        {
            "in_proj_weight": block.attention.qkv.weight,
            "in_proj_bias": block.attention.qkv.bias,
            "out_proj.weight": block.attention.out.weight,
            "out_proj.bias": block.attention.out.bias,
        }
    )
    y = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale_a) + shift_a
    expected = x + gate_a * attention(y, y, y)[0]
    y = F.layer_norm(expected, (8,), eps=1e-6) * (1 + scale_m) + shift_m
    torch.testing.assert_close(block(x, embedding), expected + gate_m * block.mlp(y))


def test_products_of_rotated_queries_and_keys_depend_on_their_offset_alone() -> None:
    by, q, k = rotation(6, 8), torch.randn(8), torch.randn(8)
    q, k = (rotated(vector.expand(1, 1, 36, 8), by)[0, 0].view(6, 6, 8) for vector in (q, k))
    product = torch.einsum("rcd,sed->rcse", q, k)
    torch.testing.assert_close(product[0, 1, 2, 4], product[3, 2, 5, 5])
    torch.testing.assert_close(product[2, 2, 2, 2], product[5, 0, 5, 0])
    assert abs(float(product[0, 1, 2, 4] - product[0, 1, 4, 2])) > 1e-3


def test_queries_and_keys_of_any_size_give_the_same_attention() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, mlp_ratio=4.0, dropout=0.0)
    nn.init.normal_(block.modulation.weight)  # type: ignore[arg-type]
    x, embedding, by = torch.randn(3, 9, 8), torch.randn(3, 8), rotation(3, 4)
    answer = block(x, embedding, by)
    with torch.no_grad():
        block.qkv.weight[:16] *= 100
        block.qkv.bias[:16] *= 100
    torch.testing.assert_close(block(x, embedding, by), answer)


def gradients_of(block: nn.Module, *told: Any) -> bool:
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    return torch.autograd.gradcheck(lambda x, embedding: block(x, embedding, *told), (x, embedding))


@pytest.mark.parametrize(
    "check",
    [
        lambda: gradients_of(DiTBlock(8, 2, mlp_ratio=2.0, dropout=0.0).double()),
        lambda: gradients_of(TransformerBlock(8, 2, mlp_ratio=3.0, dropout=0.0).double(), rotation(2, 4)),
    ],
    ids=["DiT", "pixel transformer"],
)
def test_gradients_of_each_block_are_its_slopes(check: Callable[[], bool]) -> None:
    torch.manual_seed(0)
    assert check()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_answer_alike(kind: type[Network], dtype: torch.dtype) -> None:
    network = trained(small(kind)).eval().requires_grad_(False)
    exact = network(*batch())
    answer = network.to(dtype)(*batch())
    assert answer.dtype == dtype
    torch.testing.assert_close(answer.float(), exact, rtol=0, atol=0.1 * float(exact.std()))
