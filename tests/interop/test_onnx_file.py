"""ONNX files of our networks, evaluated by onnxruntime."""

from pathlib import Path

import pytest
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop import onnx_file
from diffusion_lab.networks import Blocks, DiT, Labels, Network, PixelTransformer, UNet
from support.pipelines import mild

NETWORKS = [
    UNet(
        3, 6, resolution=16, channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(8,),
        labels=Labels(5, 0.1), blocks=Blocks(num_groups=4, scale_shift=True, resize="residual"), patch_size=2,
    ),
    DiT(4, 8, resolution=8, channels=16, depth=1, num_heads=2, labels=Labels(5)),
    PixelTransformer(1, 1, resolution=8, patch_size=4, bottleneck=4, channels=16, depth=1, num_heads=2),
]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_onnxruntime_has_the_outputs_of_torch_for_another_batch_size(number: int, tmp_path: Path) -> None:
    network = NETWORKS[number]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert onnx_file.write(network.eval(), tmp_path) <= 1e-5


def test_a_super_resolution_network_is_refused() -> None:
    network: Network = UNet(1, 1, resolution=8, channels=32, channel_multipliers=(1,), condition_channels=1)
    with pytest.raises(UserError, match=r"model.condition_channels must be 0 for format=onnx, got 1 channels"):
        onnx_file.require_exportable(network)


@pytest.mark.full
def test_a_file_with_other_outputs_is_refused(tmp_path: Path) -> None:
    network = DiT(1, 1, resolution=4, channels=8, depth=1, num_heads=1)
    mild(network)
    onnx_file.write(network.eval(), tmp_path)
    network.head.out.bias.data += 1
    with pytest.raises(UserError, match=r"the outputs of model.onnx must differ by at most 1e-05 .*, got \d"):
        onnx_file._checked(onnx_file._PlainInputs(network), tmp_path / "model.onnx")
