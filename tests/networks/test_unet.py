import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.networks import Blocks, Condition, Labels, Sinusoids, UNet
from diffusion_lab.networks.blocks import Attention, Downsample, ResidualBlock, Stage, Upsample

SMALL: dict[str, Any] = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "attention_resolutions": (8, 4),
    "labels": Labels(4, dropout=0.1),
}
OF_BLOCKS = {field.name for field in fields(Blocks)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale_shift": True},
    {"resize": "strided_symmetric"},
    {"resize": "residual"},
    {"resize": "projected", "rescale": True, "attend_once_on_way_up": True},
    {"head_channels": 4},
    {"patch_size": 2},
    {"num_blocks": (1, 3), "channel_multipliers": (0.5, 2), "sinusoids": Sinusoids("adm")},
    {"scale_shift": True, "resize": "residual", "num_heads": 4, "patch_size": 2, "checkpointing": True},
    {"norm_eps": 1e-6, "sinusoids": Sinusoids(add_label=True)},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "defaults")


def small(**options: Any) -> UNet:
    """A network of 5 -> 3 channels, 16 pixels and four classes, attentive at 8 (or at 4, after patches of 2)."""
    torch.manual_seed(0)
    blocks = Blocks(**{"num_groups": 4} | {name: options.pop(name) for name in OF_BLOCKS & options.keys()})
    return UNet(5, 3, resolution=16, blocks=blocks, **SMALL | options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    x_t = torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(seed))
    return x_t, torch.tensor([0.0, 500.0, 999.0]), Condition(torch.tensor([0, 3, 4]))


def trained(network: UNet, num_steps: int = 2) -> UNet:
    """After a few steps of gradient descent on noise: no layer is zero any more."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(num_steps):
        optimizer.zero_grad()
        (network(*batch(step)) - torch.ones(3, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    return network


def trained_with(options: dict[str, Any]) -> UNet:
    """A copy of the trained network with these options, which is trained once."""
    key = repr(options)
    if key not in TRAINED:
        TRAINED[key] = trained(small(**options))
    return copy.deepcopy(TRAINED[key])


TRAINED: dict[str, UNet] = {}


@every_option
def test_an_untrained_network_answers_exactly_0(options: dict[str, Any]) -> None:
    answer = small(**options)(*batch())
    assert answer.shape == (3, 3, 16, 16)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, torch.zeros(3, 3, 16, 16))


@every_option
def test_every_residual_branch_starts_as_nothing(options: dict[str, Any]) -> None:
    network = small(**options)
    branches = [m for name, m in network.named_modules() if name.endswith((".conv_out", ".out"))]
    assert len(branches) >= 10
    assert all(not bool(parameter.any()) for branch in branches for parameter in branch.parameters())


@every_option
def test_gradients_reach_every_parameter_after_two_steps(options: dict[str, Any]) -> None:
    network = trained_with(options)
    network.zero_grad()
    network(*batch(2)).square().mean().backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert unreached == []


@every_option
def test_time_label_and_image_each_change_the_answer(options: dict[str, Any]) -> None:
    network = trained_with(options).eval().requires_grad_(False)
    x_t, time, condition = batch()
    answer = network(x_t, time, condition)
    changed = [
        network(x_t, time + 100, condition),
        network(x_t, time, Condition(torch.tensor([1, 2, 0]))),
        network(x_t.flip(-1), time, condition),
    ]
    assert all(float((other - answer).abs().amax(dim=(1, 2, 3)).min()) > 1e-4 for other in changed)


@every_option
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(options: dict[str, Any]) -> None:
    network = trained_with(options).eval()
    x_t, time, condition = batch()
    assert condition.label is not None
    together = network(x_t, time, condition)
    alone = network(x_t[1:2], time[1:2], Condition(condition.label[1:2]))
    torch.testing.assert_close(together[1:2], alone)


def test_the_null_label_has_a_row_only_where_labels_are_dropped() -> None:
    networks = [small(labels=labels) for labels in (Labels(), Labels(4), Labels(4, dropout=0.1))]
    rows = [[m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)] for network in networks]
    assert rows == [[], [4], [5]]


@pytest.mark.parametrize("label", [None, torch.tensor([0, 1, 2])])
def test_labels_that_are_missing_or_of_no_use_are_refused(label: Tensor | None) -> None:
    x_t, time, _ = batch()
    network = small(labels=Labels() if label is not None else Labels(4, dropout=0.1))
    wanted = "None" if label is not None else r"a tensor of labels in 0\.\.4"
    with pytest.raises(ValueError, match=f"`label` must be {wanted} for this network, got"):
        network(x_t, time, Condition(label))


def test_a_network_that_knows_augmentations_has_one_bias_free_map_more() -> None:
    num_parameters = [sum(p.numel() for p in small(num_augmentation_channels=n).parameters()) for n in (0, 9)]
    assert num_parameters[1] - num_parameters[0] == 9 * 8


def test_an_augmentation_changes_the_answer_of_its_image_and_0_is_none() -> None:
    network = trained(small(num_augmentation_channels=9)).eval().requires_grad_(False)
    x_t, time, condition = batch()
    answer, told = network(x_t, time, condition), torch.zeros(3, 9)
    assert torch.equal(network(x_t, time, Condition(condition.label, told)), answer)
    told[1, 4] = 1.0
    changed = (network(x_t, time, Condition(condition.label, told)) - answer).abs().amax(dim=(1, 2, 3))
    assert float(changed[1]) > 1e-4
    torch.testing.assert_close(changed[[0, 2]], torch.zeros(2))


@pytest.mark.parametrize("shape", [(3, 4, 16, 16), (3, 5, 8, 16), (3, 5, 16, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    _, time, condition = batch()
    with pytest.raises(ValueError, match=r"x_t must be \[B, 5, 16, 16\], got \[3, "):
        small()(torch.zeros(shape), time, condition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_multipliers": (1, 2, 2, 2, 2, 2)}, "resolution must be divisible by 32 .* got 16; .*resolution=32"),
        ({"patch_size": 3}, r"resolution must be divisible by 6 \(patch_size=3 and 2 levels.* got 16; .*resolution=18"),
        ({"patch_size": 0}, "patch_size must .* got 0"),
        ({"channel_multipliers": ()}, "channel_multipliers must "),
        *(
            (
                {"channel_multipliers": (1, factor)},
                rf"channel_multipliers must be .* above 0 .*, got \[1, {factor}\] for",
            )
            for factor in (-2, 0, 0.001, float("nan"), float("inf"))
        ),
        (
            {"attention_resolutions": (7,)},
            r"attention_resolutions must be empty or contain at least one of \[16, 8\] .* got \[7\]",
        ),
        ({"num_groups": 3}, "num_groups must divide the channels of every level, got num_groups=3 for 8"),
        ({"head_channels": 5}, "head_channels must divide the channels of levels with attention, got 5 for 16"),
        ({"num_heads": 3}, "num_heads must divide the channels of levels with attention, got 3 for 16"),
        ({"num_heads": 2, "head_channels": 4}, "num_heads must be null if head_channels is given, got num_heads=2"),
        (
            {"num_blocks": (1, 2, 3)},
            r"num_blocks must be .*one number for all 2 levels, or one number per level\), got \[1, 2, 3\]",
        ),
        ({"num_blocks": (1, 1.5)}, r"num_blocks must be at least 1 .*, got \[1, 1\.5\]"),
        ({"channels": -8}, "channels must be even and at least 4 to embed the time, got -8"),
        ({"num_blocks": 0}, "num_blocks must be at least 1 .* got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"resize": "bigger"}, "resize must be strided, strided_symmetric, residual or projected, got bigger"),
        ({"channels": 7, "num_groups": 7}, "channels must be even and at least 4 to embed the time, got 7"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_answers_leave_autocast_in_float32() -> None:
    network = trained_with({}).eval().requires_grad_(False)
    exact = network(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(*batch())
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, exact, rtol=0, atol=0.1 * float(exact.std()))
    assert not torch.equal(answer.bfloat16().float(), answer)


def test_dropout_acts_in_training_alone() -> None:
    network = trained(small(dropout=0.5))
    assert not torch.equal(network(*batch()), network(*batch()))
    network.eval()
    assert torch.equal(network(*batch()), network(*batch()))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_the_softmax_of_scaled_products(num_heads: int) -> None:
    attention = Attention(12, num_heads=num_heads, num_groups=3, norm_eps=1e-5).double()
    nn.init.eye_(attention.get_parameter("out.weight").data.view(12, 12))  # zero at first
    x = torch.randn(5, 12, 8, 6).double()
    qkv = attention.qkv(attention.norm(x)).reshape(5, 3, num_heads, 12 // num_heads, 48)
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    weights = (torch.einsum("bhcq,bhck->bhqk", q, k) / (12 // num_heads) ** 0.5).softmax(-1)
    expected = x + torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(x.shape)
    torch.testing.assert_close(attention(x, torch.zeros(5, 4)), expected)


def shifted(y: Tensor, told: Tensor) -> Tensor:
    """Ho et al. (2020), code."""
    return F.group_norm(y + told, 2)


def scaled_and_shifted(y: Tensor, told: Tensor) -> Tensor:
    """Dhariwal & Nichol (2021), section 3.1, and their code, where the scale is around 1."""
    scale, shift = told.chunk(2, dim=1)
    return (1 + scale) * F.group_norm(y, 2) + shift


@pytest.mark.parametrize("normalise", [shifted, scaled_and_shifted])
def test_time_acts_on_the_second_normalisation(normalise: Callable[[Tensor, Tensor], Tensor]) -> None:
    scale_shift = normalise is scaled_and_shifted
    block = ResidualBlock(4, 6, embedding_channels=9, dropout=0.0, num_groups=2, norm_eps=1e-5, scale_shift=scale_shift)
    block.conv_out = nn.Conv2d(6, 6, 1)  # zero at first
    x, embedding = torch.randn(5, 4, 8, 10), torch.randn(5, 9)
    y = block.conv_in(F.silu(block.norm_in(x)))
    told = block.embedding(F.silu(embedding)).view(5, -1, 1, 1)
    expected = block.skip(x) + block.conv_out(F.silu(normalise(y, told)))
    torch.testing.assert_close(block(x, embedding), expected)


def test_downsampling_pads_at_the_right_and_the_bottom_alone() -> None:
    downsample = Downsample(3)
    corner = torch.zeros(3, 3, 3, 3)
    corner[range(3), range(3), 0, 0] = 1  # each channel's upper left neighbor
    downsample.load_state_dict({"conv.weight": corner, "conv.bias": torch.zeros(3)})
    x = torch.randn(5, 3, 8, 6)
    torch.testing.assert_close(downsample(x, torch.zeros(5, 4)), x[:, :, ::2, ::2])


def test_patches_are_folded_into_channels_and_unfolded_again() -> None:
    network = small(patch_size=2)
    assert network.conv_in.weight.shape == (8, 5 * 4, 3, 3)
    network.conv_out = nn.Conv2d(8, 3 * 4, 1)
    network.conv_out.load_state_dict({"weight": torch.zeros(12, 8, 1, 1), "bias": torch.arange(12)})
    answer = network(*batch())
    for channel in range(3):
        patch = 4 * channel + torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        assert torch.equal(answer[:, channel], patch.repeat(8, 8).expand(3, 16, 16))


def test_a_symmetric_downsampling_pads_on_all_sides() -> None:
    downsample = Downsample(3, symmetric=True)
    centre = torch.zeros(3, 3, 3, 3)
    centre[range(3), range(3), 1, 1] = 1
    downsample.load_state_dict({"conv.weight": centre, "conv.bias": torch.zeros(3)})
    x = torch.randn(5, 3, 8, 6)
    torch.testing.assert_close(downsample(x, torch.zeros(5, 4)), x[:, :, ::2, ::2])


def test_blocks_that_are_rescaled_keep_the_size_of_their_input() -> None:
    block = Blocks(rescale=True, num_groups=2).residual(4, 4, 9)
    x = torch.randn(5, 4, 8, 6)
    torch.testing.assert_close(block(x, torch.randn(5, 9)), x / 2**0.5)  # its own branch is zero at first
    attention = Blocks(rescale=True, num_groups=2).attention(4)
    torch.testing.assert_close(attention(x, torch.randn(5, 9)), x / 2**0.5)


@pytest.mark.parametrize(("resize", "projected"), [("residual", False), ("projected", True)])
def test_the_way_around_a_resizing_block_is_projected_in_ddpmpp_alone(resize: Any, projected: bool) -> None:
    block = Blocks(resize=resize, num_groups=2).downsample(4, 9)
    assert isinstance(block, ResidualBlock)
    assert isinstance(block.skip, nn.Conv2d) == projected
    x = torch.randn(5, 4, 8, 6)
    torch.testing.assert_close(block(x, torch.randn(5, 9)), block.skip(F.avg_pool2d(x, 2)))


def test_attention_stands_after_every_block_or_once_on_the_way_up() -> None:
    counts = [
        sum(isinstance(m, Attention) for m in small(attend_once_on_way_up=once).up.modules()) for once in (False, True)
    ]
    assert counts == [3, 1]  # the level of 8: two blocks and one more


def test_depths_and_half_widths_are_those_of_each_level() -> None:
    network = small(num_blocks=(1, 3), channel_multipliers=(0.5, 2))
    widths = [block.conv_in.out_channels for block in network.down.modules() if isinstance(block, ResidualBlock)]
    assert widths == [4, 16, 16, 16]
    assert network.conv_in.out_channels == 4


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=[] if number in (0, 4, 7) else [pytest.mark.full])
        for number, options in enumerate(OPTIONS)
    ],
    ids=lambda options: ", ".join(options) or "defaults",
)
def test_checkpointing_changes_neither_answers_nor_gradients(options: dict[str, Any]) -> None:
    plain, checkpointed = (trained_with(options | {"checkpointing": on}) for on in (False, True))
    for network in (plain, checkpointed):
        network.zero_grad()
        network(*batch(2)).square().mean().backward()
    assert torch.equal(plain(*batch(3)), checkpointed(*batch(3)))
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_checkpointing_draws_the_same_dropout_again() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = trained(small(checkpointing=checkpointing))
        network.requires_grad_(True).zero_grad()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        torch.manual_seed(7)
        network(*batch()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def kept_for_the_backward_pass(network: UNet) -> int:
    """Bytes of activations that a forward pass keeps."""
    kept = dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = network(*batch())
    del answer
    return sum(kept.values())


def test_checkpointing_keeps_less_than_half_of_the_activations() -> None:
    plain, checkpointed = (kept_for_the_backward_pass(small(checkpointing=on, channels=16)) for on in (False, True))
    assert checkpointed < 0.5 * plain


def test_an_enlarged_low_resolution_image_stands_beside_the_noisy_one() -> None:
    network = small(condition_channels=3)
    assert network.conv_in.in_channels == 5 + 3
    torch.nn.init.normal_(network.conv_out.weight)  # type: ignore[arg-type]
    x_t, time, condition = batch()
    low = torch.randn(3, 3, 8, 8)
    large = F.interpolate(low, size=(16, 16), mode="bilinear")
    told = network(x_t, time, replace(condition, image=low))
    assert not torch.equal(told, network(x_t, time, replace(condition, image=-low)))
    torch.testing.assert_close(told, network(x_t, time, replace(condition, image=large)))


@pytest.mark.parametrize(("known", "low"), [(3, None), (0, torch.zeros(3, 3, 8, 8)), (3, torch.zeros(3, 1, 8, 8))])
def test_a_low_resolution_image_that_is_missing_or_of_no_use_is_refused(known: int, low: Tensor | None) -> None:
    x_t, time, condition = batch()
    wanted = rf"\[B, {known}, h, w\]" if known else "None"
    with pytest.raises(ValueError, match=f"`image` must be {wanted} for this network, got"):
        small(condition_channels=known)(x_t, time, replace(condition, image=low))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Blocks(num_groups=2).residual(4, 6, 8),
    "scale and shift": lambda: Blocks(num_groups=2, scale_shift=True, rescale=True).residual(4, 4, 8),
    "down": lambda: Blocks(num_groups=2, resize="residual").downsample(4, 8),
    "up": lambda: Blocks(num_groups=2, resize="projected").upsample(4, 8),
    "strided": lambda: Downsample(4),
    "symmetric": lambda: Downsample(4, symmetric=True),
    "nearest": lambda: Upsample(4),
    "attention": lambda: Blocks(num_groups=2, num_heads=2).attention(4),
    "checkpointed": lambda: Stage([Blocks(num_groups=2).residual(4, 4, 8)], checkpointing=True),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_each_block_are_its_slopes(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]().double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # zero weights would hide what is behind them
    x = torch.randn(2, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    told = () if isinstance(block, (Downsample, Upsample, Attention)) else (embedding,)
    assert torch.autograd.gradcheck(lambda x, *told: block(x, *(told or (embedding,))), (x, *told))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_runs_on_the_fused_kernel(num_heads: int) -> None:
    attention = Attention(32, num_heads=num_heads, num_groups=4, norm_eps=1e-5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(torch.randn(2, 32, 8, 8), torch.randn(2, 4)).sum().backward()
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in kernels
    assert "aten::_softmax" not in kernels


@pytest.mark.parametrize(
    ("resolution", "patch_size", "num_levels", "attends"),
    [(28, 2, 2, 14), (28, 1, 3, 14), (32, 1, 3, 16), (64, 1, 4, 16), (8, 1, 1, 8), (64, 1, 2, None)],
)
def test_attention_follows_the_level_of_16_or_the_largest_below_it_by_default(
    resolution: int, patch_size: int, num_levels: int, attends: int | None
) -> None:
    settings: dict[str, Any] = {"resolution": resolution, "channels": 32, "channel_multipliers": (1,) * num_levels}
    network = UNet(1, 1, **settings, patch_size=patch_size)
    explicit = UNet(1, 1, **settings, patch_size=patch_size, attention_resolutions=[attends] if attends else [])
    assert network.state_dict().keys() == explicit.state_dict().keys()
