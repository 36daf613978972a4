"""Orders of the output channels of the layer that computes queries, keys and values of attention.

`Attention` of this package has the order [q k v, head, channel of a head] with the first axis as the slowest.
"""

from torch import Tensor


def as_convolution(weight: Tensor) -> Tensor:
    """Return the weight of a 1 x 1 convolution, [out, in, 1, 1], from that of a linear or one-dimensional layer."""
    return weight.reshape(*weight.shape[:2], 1, 1) if weight.dim() in (2, 3) else weight


def from_heads_first(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from [head, q k v, channel], as `QKVAttentionLegacy` of Dhariwal & Nichol (2021, code) has them."""
    rows = tensor.reshape(num_heads, 3, -1, *tensor.shape[1:])
    return rows.transpose(0, 1).reshape(tensor.shape)


def from_channels_first(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from [head, channel, q k v], as `UNetBlock` of Karras et al. (2022, code) has them."""
    rows = tensor.reshape(num_heads, -1, 3, *tensor.shape[1:])
    return rows.movedim(2, 0).reshape(tensor.shape)
