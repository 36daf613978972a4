"""Conversion of the weights of our U-Net to a UNet2DModel of diffusers."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from diffusion_lab.networks import UNet
from diffusion_lab.networks.blocks import Attention, ResidualBlock

RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "embedding": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
ENDS = {
    "conv_in": "conv_in",
    "time_embedding.layers.0": "time_embedding.linear_1",
    "time_embedding.layers.2": "time_embedding.linear_2",
    "label_embedding": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def as_diffusers(network: UNet) -> dict[str, Tensor]:
    """Return the state_dict of a UNet2DModel with the same weights."""
    ends = (
        (theirs, network.get_submodule(ours)) for ours, theirs in ENDS.items() if getattr(network, ours, 0) is not None
    )
    modules = chain(ends, *(_of_block(name, block) for name, block in _blocks(network)))
    return dict(chain.from_iterable(_tensors(name, module) for name, module in modules))


def _blocks(network: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Yield every block with its name in diffusers, in the order of the forward pass."""
    for kind, stages, ends in (("down_blocks", network.down, "downsamplers"), ("up_blocks", network.up, "upsamplers")):
        level = count = 0
        # A stage is a residual block and optionally attention. A module that changes the resolution is the last one.
        for modules in ([*stage] for stage in stages):  # type: ignore[misc]
            resizes = [m for m in modules if _resizes(m)]
            for module in modules[: len(modules) - len(resizes)]:
                part = "attentions" if isinstance(module, Attention) else "resnets"
                yield f"{kind}.{level}.{part}.{count}", module
            count += len(modules) > len(resizes)
            for module in resizes:
                yield f"{kind}.{level}.{ends}.0", module
                level, count = level + 1, 0
    for part, module in zip(("resnets.0", "attentions.0", "resnets.1"), network.middle, strict=True):
        yield f"mid_block.{part}", module


def _resizes(module: nn.Module) -> bool:
    return not isinstance(module, (ResidualBlock, Attention)) or getattr(module, "resize", None) is not None


def _of_block(name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(block, ResidualBlock):
        yield from ((f"{name}.{theirs}", block.get_submodule(ours)) for ours, theirs in RESIDUAL.items())
    elif isinstance(block, Attention):
        yield f"{name}.group_norm", block.norm
        for k, part in enumerate(("to_q", "to_k", "to_v")):
            yield f"{name}.{part}", _linear(block.qkv, k, 3)
        yield f"{name}.to_out.0", _linear(block.out, 0, 1)
    else:
        yield f"{name}.conv", block.get_submodule("conv")


def _linear(convolution: nn.Conv2d, index: int, num_parts: int) -> nn.Linear:
    """Return a part of the output channels of a 1 x 1 convolution as a linear layer."""
    weight = convolution.weight.chunk(num_parts)[index].flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": convolution.bias.chunk(num_parts)[index]})  # type: ignore[union-attr]
    return linear


def _tensors(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{key}", torch.clone(tensor)) for key, tensor in module.state_dict().items())
