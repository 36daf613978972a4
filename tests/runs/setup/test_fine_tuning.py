"""Weights from another run in a new run, in this process: which are taken, what is recorded, and what is refused."""

import copy
import hashlib
import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import nn

from diffusion_lab import checkpoint_files
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs import class_names
from diffusion_lab.runs.load import instantiate_node, load_module, resolve
from diffusion_lab.runs.setup import fine_tuning
from support.written_runs import TINY, write_run

LABELS = ("conditioning=label", "data.num_classes=3")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "source", "model=unet_tiny", *TINY)


@cache
def _composed(*choices: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["model=unet_tiny", *TINY, *choices])


def composed(folder: Path, *overrides: str) -> DictConfig:
    """Return the config of a new run in a folder, with the network of the sources unless the overrides change it."""
    choices = [text for text in overrides if (CONF / text.partition("=")[0]).is_dir()]
    config = copy.deepcopy(_composed(*choices))
    values = [text for text in overrides if text not in choices]
    given = OmegaConf.from_dotlist([*values, f"run_folder={folder}"])
    return resolve(DictConfig(OmegaConf.merge(config, given)))


def prepared(
    folder: Path, *overrides: str, names: tuple[str, ...] = (), is_new: bool = True
) -> tuple[nn.Module, fine_tuning.Initialization | None]:
    """Return the network of a new run in a folder, and its initialization."""
    config = composed(folder, *overrides)
    torch.manual_seed(config.seed)
    network = instantiate_node(config.model, "model")
    return network, fine_tuning.prepare_network(network, config, lambda: names, is_new=is_new)


def state(network: nn.Module) -> dict[str, Any]:
    return dict(network.state_dict())


def test_a_run_starts_from_the_average_of_the_other_run_and_records_it(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        network, initialization = prepared(tmp_path, f"init={source}")
    expected = load_module(source).ema.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(network).items())
    assert initialization is not None
    initialization.write(tmp_path)
    checkpoint = source / "checkpoints" / "last.ckpt"
    record = json.loads((tmp_path / "initialization.json").read_text())
    assert record["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (record["source"], record["step"], record["weights"]) == (str(checkpoint), 40, "main")
    assert (record["taken"], record["made_anew"], record["not_used"]) == ([*expected], [], [])
    assert "tensors are taken from" in caplog.text
    raw, _ = prepared(tmp_path / "raw", f"init={checkpoint}", "init_weights=raw")
    assert torch.equal(state(raw)["conv_in.weight"], load_module(source).network.state_dict()["conv_in.weight"])


def test_a_run_without_a_checkpoint_starts_from_the_weights_in_its_folder(source: Path, tmp_path: Path) -> None:
    network, initialization = prepared(tmp_path, f"init={source}", "seed=1")
    assert initialization is not None
    initialization.write(tmp_path)
    again, nothing = prepared(tmp_path, "init=vanished", "seed=2")
    assert nothing is None
    assert all(torch.equal(tensor, state(again)[name]) for name, tensor in state(network).items())
    (tmp_path / "checkpoints" / "init.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"init.pt must have the weights from which the run started \("):
        prepared(tmp_path, "init=vanished")
    prepared(tmp_path, "init=vanished", is_new=False)  # the weights are in its checkpoint


def test_another_resolution_and_color_images_take_all_other_tensors(source: Path, tmp_path: Path) -> None:
    network, initialization = prepared(tmp_path, f"init={source}", "data.channels=3", "data.resolution=32",
                                       "model.attention_resolutions=[16]", "variance=learned_range")  # fmt: skip
    assert initialization is not None
    assert initialization.record["made_anew"] == ["conv_in.weight", "conv_out.weight", "conv_out.bias"]
    assert state(network)["conv_out.bias"].shape == (6,)


def test_tables_of_classes_are_taken_by_name_among_the_trained_classes(tmp_path: Path) -> None:
    source = write_run(tmp_path / "source", "model=unet_tiny", *TINY, *LABELS)
    class_names.save(["cat", "dog", "cow"], source)
    class_names.save_trained([0, 1], source)
    network, initialization = prepared(tmp_path, f"init={source}", *LABELS, names=("dog", "cow", "owl"))
    name = "label_embedding.weight"
    assert initialization is not None
    assert initialization.record["rows"] == {name: ["dog", "(the null label)"]}
    theirs = load_module(source).ema.network.state_dict()[name]
    assert torch.equal(state(network)[name][[0, 3]], theirs[[1, 3]])
    same, _ = prepared(tmp_path / "unnamed", f"init={source}", *LABELS)  # without names, by number
    assert torch.equal(state(same)[name], theirs)


def test_another_meaning_of_the_output_is_noted(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prepared(tmp_path, f"init={source}", "prediction._target_=diffusion_lab.process.Epsilon")
    changed = "prediction._target_ (was diffusion_lab.process.V, got diffusion_lab.process.Epsilon)"
    assert f"must be learned anew: {changed}." in caplog.text


REFUSED = {
    "no fit": (("model.channels=12",), "of which no layer has the same name and shape; its settings of the network "
               "differ: model.channels (was 8, got 12); that run was started with model=unet_tiny"),
    "no run": (("init=nowhere",), "`init` must be a run folder, a checkpoint file in it or last, got nowhere, which"),
    "weights": (("init_weights=narrow",), "`init_weights` must be main or raw, got narrow."),
    "freeze nothing": (("freeze=dwn.*",), "`freeze` must match names such as time_embedding.layers.0.weight, "),
    "freeze anew": (("data.channels=3", "freeze=conv_*"), "`freeze` must leave the parameters that `init` does not "
                    "have, but it matches conv_in.weight, conv_out.weight, conv_out.bias."),
    "no pattern": (("freeze=3",), "`freeze` must be a glob pattern of names or a list of patterns, got 3."),
    "both": (("freeze=down.*", "lora.rank=2"), "`freeze` must be null with lora.rank, which freezes all parameters"),
    "no rank": (("lora.alpha=2",), "lora.alpha must be null without lora.rank, got 2; try lora.rank=8."),
    "no group": (("lora=8",), "lora must be a group of settings, got 8; lora.rank=8 adds adapters of rank 8."),
    "rank": (("lora.rank=-2",), "lora.rank must be a whole number of at least 1, or null, got -2."),
    "lora anew": (("data.channels=3", "lora.rank=2"), "lora.also_train must match the parameters that `init` does not "
                  "have and that start from random values, got [], which leaves conv_in.weight, conv_out.weight, "),
    "lora without": (("init=null", "lora.rank=2"), "`init` must name a run for lora.rank (adapters of random weights "),
    "weights without": (("init=null", "init_weights=raw"), "`init_weights` must be null without init=RUN, got raw."),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.full] if case == "lora anew" else []) for case in REFUSED]
)
def test_settings_that_do_not_fit_are_refused(case: str, source: Path, tmp_path: Path) -> None:
    overrides, message = REFUSED[case]
    init = () if any(text.startswith("init=") for text in overrides) else (f"init={source}",)
    with pytest.raises(UserError, match=re.escape(message)):
        prepared(tmp_path, *init, *overrides)


def test_adapters_without_their_package_name_what_installs_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"`lora` requires the package peft; pip install 'diffusion-lab-framework\[lora"
    ):
        fine_tuning.prepare_network(
            nn.Linear(1, 1), composed(tmp_path, "lora.rank=2", f"init={source}"), tuple, is_new=True
        )


@pytest.mark.parametrize("damage", ["bytes", "code", "values"])
def test_a_damaged_source_is_refused_and_runs_no_code(damage: str, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    file = folder / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    content = torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)
    if damage == "bytes":
        file.write_bytes(b"no checkpoint")
    elif damage == "code":
        torch.save(content | {"payload": _Payload(tmp_path / "executed")}, file)
    else:
        content["state_dict"]["ema.networks.main.conv_in.weight"][0] = torch.inf
        checkpoint_files.write(content, file)
    with pytest.raises(
        UserError, match=r"^(`init` must be a complete checkpoint, got |the weights of `init` must be fin)"
    ):
        prepared(tmp_path / "run", f"init={folder}")
    if damage == "bytes":
        with pytest.raises(UserError, match=re.escape(f"got {file} ({file} is damaged: ")):
            prepared(tmp_path / "run", f"init={folder}")
    assert not (tmp_path / "executed").exists()


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def renamed(source: Path, folder: Path, network: str) -> Path:
    """Return a copy of a run whose config names another class as its network."""
    folder.mkdir()
    text = (source / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("diffusion_lab.networks.UNet", network))
    (folder / "checkpoints").symlink_to(source / "checkpoints")
    return folder


def test_the_config_of_a_source_is_read_as_data(source: Path, tmp_path: Path) -> None:
    foreign = renamed(source, tmp_path / "foreign", "not_installed.UNet")
    _, initialization = prepared(tmp_path / "run", f"init={foreign}")
    assert initialization is not None
    assert initialization.record["made_anew"] == []


def test_a_network_of_another_kind_is_refused(source: Path, tmp_path: Path) -> None:
    other = renamed(source, tmp_path / "other", "diffusion_lab.networks.DiT")
    message = "`init` must be a run with a network of the class UNet, as `model` of this run, got "
    with pytest.raises(UserError, match=f"^{message}.* with DiT"):
        prepared(tmp_path / "run", f"init={other}")


def test_a_resumed_run_takes_no_initial_weights() -> None:
    message = "`init` must not be given with `resume`, which continues from the state of its run, got init=logs/RUN."
    with pytest.raises(UserError, match=f"^{message}$"):
        fine_tuning.require_no_init(["seed=1", "init=logs/RUN"])
    fine_tuning.require_no_init(["seed=1", "init=null"])
