"""The U-Net of DDPM (Ho et al. 2020), ADM (Dhariwal & Nichol 2021) and DDPM++ (Song et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab import contracts
from diffusion_lab.networks.blocks import Blocks, Levels, Stage, initialize, middle, normalization, zero
from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.embeddings import Sinusoids, TimeEmbedding, embed_label, require_label, with_condition_image
from diffusion_lab.networks.network import Network


class UNet(Network):
    """An encoder and a decoder of residual blocks, with skip connections between their levels.

    in_channels, out_channels, resolution, labels, num_augmentation_channels, condition_channels: see `Network`.
    channels: base width; level i has channels * channel_multipliers[i] and half the resolution of the previous level.
    num_blocks: number of residual blocks per level (one more in the decoder); a list has one number per level.
    attention_resolutions: feature-map resolutions (in patches) of the levels whose blocks are followed by attention; by
        default the level of resolution 16, or the largest level below it.
    attend_once_on_way_up: whether only the last block of a decoder level is followed by attention (DDPM++).
    blocks: settings that all blocks share.
    patch_size: side of the pixel squares that are folded into channels at the input and unfolded at the output; 1
        disables folding.
    sinusoids: embedding of the time, and with add_label=True of the label.

    Raises ValueError if the resolution cannot be halved at every level, if num_groups does not divide the channels, or
    if no level has one of the attention_resolutions.

    >>> from diffusion_lab import Condition, UNet
    >>> network = UNet(3, 3, resolution=32, channels=32, channel_multipliers=(1, 2), num_blocks=1)
    >>> network(torch.randn(2, 3, 32, 32), torch.tensor([0.0, 999.0]), Condition()).shape
    torch.Size([2, 3, 32, 32])
    """

    mixes_labels = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resolution: int,
        channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 2, 2),
        num_blocks: int | Sequence[int] = 2,
        attention_resolutions: Sequence[int] | None = None,
        attend_once_on_way_up: bool = False,
        blocks: Blocks | None = None,
        labels: Labels | None = None,
        patch_size: int = 1,
        num_augmentation_channels: int = 0,
        condition_channels: int = 0,
        sinusoids: Sinusoids | None = None,
    ) -> None:
        super().__init__()
        levels = Levels.of(
            resolution,
            channels=channels,
            channel_multipliers=channel_multipliers,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            default_attention=(16,),  # Ho et al. (2020), appendix B
            patch_size=patch_size,
        )
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.patch_size, self.num_augmentation_channels = patch_size, num_augmentation_channels
        self.condition_channels = condition_channels
        self.blocks = blocks = blocks or Blocks()
        self.labels, embedded = Labels.of(labels), 4 * channels
        self.time_embedding = TimeEmbedding(channels, embedded, num_augmentation_channels, sinusoids, self.labels)
        has_table = self.labels.num_classes and not self.time_embedding.adds_label
        self.label_embedding = nn.Embedding(self.labels.num_rows, embedded) if has_table else None
        self.conv_in = nn.Conv2d((in_channels + condition_channels) * patch_size**2, levels.stem, 3, padding=1)

        down, skips = levels.encoder(blocks, embedded)
        width = levels.widths[-1]
        self.middle = middle(width, blocks, embedded)

        up = list[Stage]()
        for level in reversed(range(len(levels))):
            attends = levels.sides[level] in levels.attention_resolutions
            for k in range(levels.depths[level] + 1):
                up.append(blocks.stage(blocks.residual(width + skips.pop(), levels.widths[level], embedded)))
                width = levels.widths[level]
                if attends and (k == levels.depths[level] or not attend_once_on_way_up):
                    up[-1].append(blocks.attention(width))
            if level > 0:
                up[-1].append(blocks.upsample(width, embedded))

        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.norm_out = normalization(width, blocks.num_groups, blocks.norm_eps)
        self.conv_out = zero(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))
        initialize(self, blocks.initialization)

    @property
    def conventions(self) -> dict[str, Any]:
        of_labels = contracts.conventions(self.time_embedding.sinusoids) if self.labels.num_classes else {}
        return contracts.conventions(self.blocks) | of_labels

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Network.forward`.

        Raises ValueError if x_t is not [B, in_channels, resolution, resolution], or if the condition lacks a part that
        the network requires or has a part that it does not accept.
        """
        if x_t.shape[1:] != (self.in_channels, self.resolution, self.resolution):
            raise ValueError(
                f"x_t must be [B, {self.in_channels}, {self.resolution}, {self.resolution}], got {list(x_t.shape)}."
            )
        embedding = self._embedding(time, condition)
        x = with_condition_image(x_t, condition, self.condition_channels).to(self.conv_in.weight.dtype)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        skips = [x]
        for stage in self.down:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for stage in self.up:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
        # The output has the precision of the weights even under autocast: samplers subtract it from x_t, and bfloat16
        # has a precision of 8 bits only.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_out(F.silu(self.norm_out(x.to(self.conv_out.weight.dtype))))
        return F.pixel_shuffle(x, self.patch_size)

    def _embedding(self, time: Tensor, condition: Condition) -> Tensor:
        require_label(condition.label, self.labels)
        embedding: Tensor = self.time_embedding(time, condition)
        return (
            embedding
            if self.label_embedding is None
            else embedding + embed_label(self.label_embedding, condition.label)
        )
