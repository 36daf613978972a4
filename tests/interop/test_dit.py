"""Checkpoints of DiT, random and of published sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop import dit
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Options, build_network, network_on_meta
from diffusion_lab.interop.tensors import ForeignTensors
from diffusion_lab.networks import Condition
from support.foreign_dit import PUBLISHED, DiTSizes, output, with_positions
from support.foreign_openai import meta_tensors, random_tensors

SMALL = DiTSizes(8, 2, 64, 2, 4, num_classes=5)


@pytest.mark.parametrize("sizes", [SMALL, DiTSizes(12, 4, 48, 1, 3, 7, learn_sigma=False)], ids=["DiT/2", "DiT/4"])
def test_an_imported_network_has_the_outputs_of_the_original_for_all_labels(sizes: DiTSizes, tmp_path: Path) -> None:
    tensors = with_positions(sizes, random_tensors(sizes.shapes()))
    torch.save({"model": random_tensors(sizes.shapes(), seed=1), "ema": tensors, "opt": {}}, tmp_path / "0000300.pt")
    form, imported = read_foreign(tmp_path / "0000300.pt", "auto", Options(num_heads=sizes.num_heads))
    assert (form, imported.step) == ("dit", 300)
    network: Any = build_network(imported.network)
    network.load_state_dict(imported.weights)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((3, 4, sizes.input_size, sizes.input_size), generator=generator, dtype=torch.float64)
    time, label = torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, sizes.num_classes - 1, sizes.num_classes])
    expected = output(sizes, {k: v.double() for k, v in tensors.items()}, x, time, label)
    assert network.labels.null == sizes.num_classes  # the null class is the last row of the table
    ours = network.double().eval()(x, time, Condition(label))
    assert (ours - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_network_has_the_published_number_of_parameters(name: str) -> None:
    sizes, count = PUBLISHED[name]
    tensors = ForeignTensors(meta_tensors(sizes.shapes()), Path(name), "dit")
    num_positions = tensors["pos_embed"].numel()
    imported = dit.read(tensors, Options(autoencoder="/vae"))
    network = network_on_meta(imported.network, Path(name))
    found = sum(parameter.numel() for parameter in network.parameters()) + num_positions
    assert count in (None, found)
    assert imported.network["num_heads"] == sizes.num_heads
    assert f"data.resolution={8 * sizes.input_size}" in imported.overrides
    assert {"space=sd_latents", 'space.autoencoder.pretrained_model_name_or_path="/vae"'} <= set(imported.overrides)


def test_other_positions_are_refused(tmp_path: Path) -> None:
    torch.save(random_tensors(SMALL.shapes()), tmp_path / "model.pt")
    with pytest.raises(UserError, match="pos_embed must be the sines and cosines of a square grid"):
        read_foreign(tmp_path / "model.pt", "dit", Options(num_heads=4))


def test_a_network_of_another_size_needs_its_number_of_heads(tmp_path: Path) -> None:
    torch.save(with_positions(SMALL, random_tensors(SMALL.shapes())), tmp_path / "model.pt")
    with pytest.raises(UserError, match="num_heads must be given"):
        read_foreign(tmp_path / "model.pt", "auto", Options())
