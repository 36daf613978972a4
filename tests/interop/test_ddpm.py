"""Checkpoints of DDPM in the layout of pytorch_diffusion and ddim, random and of published sizes."""

from pathlib import Path

import pytest
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop import ddpm
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Options, build_network, network_on_meta
from diffusion_lab.interop.tensors import ForeignTensors
from diffusion_lab.networks import Condition
from support.foreign_ddpm import DDPM, PUBLISHED, output
from support.foreign_openai import meta_tensors, random_tensors

SMALL = DDPM(32, 32, (1, 2, 2), 1)


@pytest.mark.parametrize(
    "net", [SMALL, DDPM(16, 64, (1, 1), 2, attn_resolutions=(8,))], ids=["attention at 16", "at 8"]
)
def test_an_imported_network_has_the_outputs_of_the_original(net: DDPM, tmp_path: Path) -> None:
    tensors = random_tensors(net.shapes())
    torch.save(tensors, tmp_path / "model.ckpt")
    options = Options() if 16 in net.attn_resolutions else Options(resolution=net.resolution)
    form, imported = read_foreign(tmp_path / "model.ckpt", "auto", options)
    assert form == "ddpm"
    network = build_network(imported.network)
    network.load_state_dict(imported.weights)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 3, net.resolution, net.resolution), generator=generator, dtype=torch.float64)
    time = torch.tensor([0.0, 999.0])
    expected = output(net, {k: v.double() for k, v in tensors.items()}, x, time)
    ours = network.double().eval()(x, time, Condition())
    error = (ours - expected).abs().amax(dim=(1, 2, 3)) / expected.abs().max()
    assert error[0] < 1e-12
    # Both codes round the frequencies to float32, in another order: at time 999, angles differ by up to 1e-4.
    assert error[1] < 1e-5


def test_a_checkpoint_of_ddim_gives_its_averages(tmp_path: Path) -> None:
    raw, averages = (random_tensors(SMALL.shapes(), seed=seed) for seed in (1, 2))
    states = [{f"module.{name}": tensor for name, tensor in weights.items()} for weights in (raw, averages)]
    torch.save([states[0], {"state": {}, "param_groups": []}, 3, 4, states[1]], tmp_path / "ckpt.pth")
    _, imported = read_foreign(tmp_path / "ckpt.pth", "ddpm", Options())
    assert torch.equal(imported.weights["conv_in.weight"], averages["conv_in.weight"])
    torch.save(states[0], tmp_path / "raw.pth")
    _, imported = read_foreign(tmp_path / "raw.pth", "ddpm", Options())
    assert torch.equal(imported.weights["conv_in.weight"], raw["conv_in.weight"])


@pytest.mark.parametrize("path", PUBLISHED)
def test_each_published_network_has_the_published_number_of_parameters(path: str) -> None:
    net, count, data = PUBLISHED[path]
    tensors = ForeignTensors(meta_tensors(net.shapes()), Path(path), "ddpm")
    imported = ddpm.read(tensors, Options())
    network = network_on_meta(imported.network, Path(path))
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(map(torch.numel, tensors.values()))
    assert count in (None, sum(parameter.numel() for parameter in network.parameters()))
    assert imported.network["resolution"] == net.resolution
    assert imported.network["blocks"]["norm_eps"] == 1e-6
    assert f"data={data}" in imported.overrides


def test_a_network_without_attention_needs_its_resolution(tmp_path: Path) -> None:
    torch.save(random_tensors(DDPM(16, 32, (1, 1), 1, attn_resolutions=()).shapes()), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="resolution must be given"):
        read_foreign(tmp_path / "model.ckpt", "auto", Options())
    assert read_foreign(tmp_path / "model.ckpt", "auto", Options(resolution=16))[1].network["resolution"] == 16
