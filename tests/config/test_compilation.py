import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from diffusion_lab.config import compilation
from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.errors import UserError
from diffusion_lab.networks import Condition
from support.small_runs import fit, small_module, weights

X_T, TIME = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8), torch.tensor([3.0, 700.0])


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv(compilation.CACHE_VARIABLE, str(tmp_path / "torch"))


@pytest.mark.full
def test_a_compiled_network_learns_the_same_weights_under_the_same_names() -> None:
    plain, compiled = small_module(), small_module()
    Acceleration(compile=True)(compiled.network, backend="aot_eager")
    fit(plain, 3)
    fit(compiled, 3)
    torch.testing.assert_close(weights(compiled.network), weights(plain.network), rtol=0, atol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_network_is_compiled_on_its_first_call() -> None:
    network, graphs = small_module().network, []

    def count_graphs(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    Acceleration(compile=True)(network, backend=count_graphs)  # type: ignore[arg-type]
    assert not graphs
    network(X_T, TIME, Condition())
    assert len(graphs) == 1


def test_a_copy_of_a_compiled_network_is_not_compiled() -> None:
    network = small_module().network
    expected = network(X_T, TIME, Condition())

    def fail(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        raise AssertionError

    Acceleration(compile=True)(network, backend=fail)  # type: ignore[arg-type]
    assert torch.equal(copy.deepcopy(network)(X_T, TIME, Condition()), expected)


def test_channels_last_changes_the_memory_format_of_weights_but_not_the_output() -> None:
    module = small_module()
    plain, accelerated = module.network, copy.deepcopy(module.network)
    Acceleration(channels_last=True)(accelerated)
    assert accelerated.conv_in.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(accelerated(X_T, TIME, Condition()), plain(X_T, TIME, Condition()), rtol=0, atol=1e-5)


@pytest.mark.full
def test_compiled_code_is_stored_in_the_package_cache_unless_the_user_sets_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Acceleration(compile=True)(torch.nn.Identity())
    assert os.environ[compilation.CACHE_VARIABLE] == str(tmp_path / "torch")
    monkeypatch.setenv(compilation.CACHE_VARIABLE, default_cache_dir())  # torch's own default
    Acceleration(compile=True)(torch.nn.Identity())
    assert os.environ[compilation.CACHE_VARIABLE] == str(tmp_path / "compiled")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"compile": "fast"}, "trainer.compile must be true, false or one of default, reduce-overhead, .*, got fast"),
        ({"compile": 1}, "trainer.compile must be true, false or one of .*, got 1"),
        ({"channels_last": "no"}, "trainer.channels_last must be true or false, got no"),
    ],
)
def test_a_wrong_setting_is_rejected(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Acceleration.from_trainer(OmegaConf.create(setting))


def test_the_name_of_the_precision_includes_the_acceleration() -> None:
    settings: list[dict[str, Any]] = [{}, {"compile": True}, {"compile": "reduce-overhead", "channels_last": True}]
    trainers = [OmegaConf.create({"precision": "32-true", **setting}) for setting in settings]
    assert [compilation.precision_name(trainer) for trainer in trainers] == [
        "32-true",
        "32-true, compiled",
        "32-true, channels last, compiled for reduce-overhead",
    ]


def test_a_run_forked_to_channels_last_keeps_the_optimizer_moments_of_each_weight(tmp_path: Path) -> None:
    plain, accelerated = small_module(), small_module()
    trainer = fit(small_module(), 3)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    Acceleration(channels_last=True).apply_memory_format(accelerated)
    for module in (plain, accelerated):
        fit(module, 6, ckpt_path=tmp_path / "first.ckpt")
    torch.testing.assert_close(weights(accelerated.network), weights(plain.network), rtol=0, atol=1e-4)
    assert accelerated.ema.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator, union-attr]
