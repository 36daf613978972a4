"""Files of EDM: DDPM++ and ADM, random and of published sizes."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop.edm import read
from diffusion_lab.interop.edm_pickle import Node, StoredTensor
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Imported, Options, build_network, network_on_meta
from diffusion_lab.networks import Condition
from support.foreign_edm import EDM, output, pickled, preconditioned, tree, with_filters, write
from support.foreign_openai import meta_tensors, random_tensors

SONG = EDM(8, 128, (1, 2), 1, (4,), label_dim=5, augment_dim=9)
DHARIWAL = EDM(8, 128, (1, 2), 1, (8, 4), is_song=False, label_dim=5)
PLAIN = EDM(8, 128, (1, 1), 1, ())
NETS = {
    "ddpm++ with classes": SONG,
    "ddpm++ without classes": EDM(8, 128, (2, 2), 1, (8,)),
    "adm with classes": DHARIWAL,
    "adm with label dropout": EDM(8, 128, (1, 1), 1, (4,), is_song=False, label_dim=5, label_dropout=0.1),
}


@cache
def random_weights(net: EDM) -> dict[str, torch.Tensor]:
    return with_filters(random_tensors(net.shapes()))


def loaded(imported: Imported) -> Any:
    network = build_network(imported.network)
    network.load_state_dict(imported.weights)
    return network.double().eval()


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("ddpm++ with classes", 2),
        ("adm with label dropout", 4),
        pytest.param("ddpm++ without classes", 4, marks=pytest.mark.full),
        pytest.param("adm with classes", 3, marks=pytest.mark.full),
    ],
)
def test_an_imported_network_has_the_outputs_of_the_original(name: str, protocol: int, tmp_path: Path) -> None:
    net = NETS[name]
    tensors = random_weights(net)
    file = write(net, tensors, tmp_path / "network.pkl", protocol=protocol)
    form, imported = read_foreign(file, "auto", Options())
    assert form == "edm"
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((3, 3, 8, 8), generator=generator, dtype=torch.float64)
    time, augment = torch.tensor([-1.5, 0.0, 1.1]), torch.rand((3, 9), generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 4, 2]) if net.label_dim else None
    weights = {key: tensor.double() for key, tensor in tensors.items()}
    expected = output(net, weights, x, time, label, augment)
    condition = Condition(label, augmentation=augment if net.augment_dim else None)
    network = loaded(imported)
    ours = network(x, time, condition)
    assert (ours - expected).abs().max() < 1e-6 * expected.abs().max()  # both round the frequencies to float32
    exact = torch.zeros(3)  # at time 0, the sinusoids are exact
    expected = output(net, weights, x, exact, label, augment)
    assert (network(x, exact, condition) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_the_null_class_of_an_embedding_table_is_the_zero_vector(tmp_path: Path) -> None:
    net = NETS["adm with label dropout"]
    file = write(net, random_weights(net), tmp_path / "network.pkl")
    imported = read_foreign(file, "edm", Options())[1]
    assert imported.weights["label_embedding.weight"].shape == (6, 512)
    assert imported.weights["label_embedding.weight"][5].abs().max() == 0
    assert "conditioning.dropout=0.1" in imported.overrides


@pytest.mark.parametrize(
    ("name", "net", "count", "overrides"),
    [
        ("edm-cifar10-32x32-uncond-vp.pkl", EDM(32, 128, (2, 2, 2), 4, (16,), augment_dim=9), 55_733_891,
         {"data=cifar10", "augmentation=edm", "conditioning=none", "sampler.num_steps=18"}),
        ("edm-cifar10-32x32-cond-vp.pkl", EDM(32, 128, (2, 2, 2), 4, (16,), label_dim=10, augment_dim=9), 55_735_299,
         {"data=cifar10", "schedule=edm", "conditioning=label", "conditioning.dropout=0.0"}),
        ("edm-imagenet-64x64-cond-adm.pkl",
         EDM(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), is_song=False, label_dim=1000), 295_899_267,
         {"data=imagenet64", "schedule=edm", "prediction.sigma_data=0.5", "sampler=heun"}),
    ],
)  # fmt: skip
def test_each_published_network_has_the_published_number_of_parameters(
    name: str, net: EDM, count: int, overrides: set[str]
) -> None:
    imported = read(node(net), Path(name), Options())
    network = network_on_meta(imported.network, Path(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert overrides <= set(imported.overrides)


def node(net: EDM) -> Node:
    """The modules of a network without memory for its weights, as reading a pickle results in them."""
    tensors = with_filters(meta_tensors(net.shapes()))
    return as_node(preconditioned(net, tree(net, tensors)))


def as_node(module: Any) -> Node:
    attributes = vars(module) if isinstance(module, torch.nn.Module) else module.attributes
    kind = "" if isinstance(module, torch.nn.Module) else module.kind
    state = {key: value for key, value in attributes.items() if not key.startswith("_")}
    for part in ("_parameters", "_buffers"):
        state[part] = {key: StoredTensor(tensor) for key, tensor in attributes.get(part, {}).items()}
    state["_modules"] = {key: as_node(child) for key, child in attributes.get("_modules", {}).items()}
    return Node(kind, state)


@pytest.mark.parametrize("sign", ["Fourier features", "larger filters", "a residual encoder"])
def test_ncsnpp_is_refused_by_name(sign: str, tmp_path: Path) -> None:
    tensors = dict(random_weights(PLAIN))
    if sign == "larger filters":
        tensors = {k: torch.full((1, 1, 4, 4), 1 / 16) if k.endswith("filter") else v for k, v in tensors.items()}
    if sign == "a residual encoder":
        tensors["enc.4x4_aux_residual.weight"] = torch.zeros(3, 3, 3, 3)
    model = tree(PLAIN, tensors)
    if sign == "Fourier features":
        model.attributes["_modules"]["map_noise"].kind = "FourierEmbedding"
    (tmp_path / "edm-cifar10-32x32-uncond-ve.pkl").write_bytes(pickled(preconditioned(PLAIN, model)))
    with pytest.raises(UserError, match=r"must contain DDPM\+\+ .* got NCSN\+\+ \(\*-ve\.pkl\)\.$"):
        read_foreign(tmp_path / "edm-cifar10-32x32-uncond-ve.pkl", "auto", Options())


@pytest.mark.parametrize("kind", ["VEPrecond", "iDDPMPrecond"])
def test_other_preconditionings_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    file = write(PLAIN, random_weights(PLAIN), tmp_path / "network.pkl", kind)
    with pytest.raises(UserError, match=f"EDMPrecond or VPPrecond, got {kind}"):
        read_foreign(file, "edm", Options())


def test_format_ddpmpp_refuses_adm(tmp_path: Path) -> None:
    net = NETS["adm with label dropout"]
    file = write(net, random_weights(net), tmp_path / "network.pkl")
    with pytest.raises(UserError, match="format=ddpmpp, got ADM; use format=edm"):
        read_foreign(file, "ddpmpp", Options())


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("EDMPrecond", {"schedule=edm", "prediction.sigma_data=0.5"}),
        ("VPPrecond", {"schedule=vp", "schedule.beta_min=0.1", "schedule.beta_max=20.0"}),
    ],
)
def test_the_preconditioning_selects_the_schedule(kind: str, overrides: set[str], tmp_path: Path) -> None:
    file = write(PLAIN, random_weights(PLAIN), tmp_path / "network.pkl", kind)
    assert overrides <= set(read_foreign(file, "ddpmpp", Options())[1].overrides)
