"""Checkpoints record what the weights mean, and modules with another meaning refuse them."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.networks import Blocks, HalfUNet, UNet
from diffusion_lab.objectives import Denoising
from diffusion_lab.process import CosineSchedule, LinearSchedule, PosteriorMean, Uniform, V
from diffusion_lab.process.gaussian import GaussianProcess
from diffusion_lab.runs.folder import _copy_checkpoint_to_fork
from diffusion_lab.training import ClassifierModule, DiffusionModule, OptimizerFactory
from diffusion_lab.training.base_module import MEANING_KEY
from support.small_runs import fit, small_module, weights

LINEAR = LinearSchedule(20, 1e-3, 0.4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a network that predicts v with the schedule LINEAR."""
    folder = tmp_path_factory.mktemp("checkpoints")
    fit(
        DiffusionModule(small_module().network, LINEAR, prediction=V()),
        2,
        callbacks=[SaveLast(str(folder), every_n_steps=2)],
    )
    return folder / "last.ckpt"


def load(path: Path, process: Any, **settings: Any) -> DiffusionModule:
    network = small_module().network
    module = DiffusionModule.load_from_checkpoint(path, network=network, process=process, **settings)
    assert isinstance(module, DiffusionModule)
    return module


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (LINEAR, {}, "trained with prediction=V, but this module has prediction=Epsilon; build the module with the"),
        (
            CosineSchedule(20),
            {"prediction": V()},
            "trained with process.schedule=LinearSchedule, but this module has process.schedule=CosineSchedule;",
        ),
        (
            LinearSchedule(20, 1e-3, 0.2),
            {"prediction": V()},
            "trained with process.schedule.beta_end=0.4, but this module has process.schedule.beta_end=0.2;",
        ),
        (
            CosineSchedule(20),
            {},
            "prediction=V and process.schedule=LinearSchedule, but this module has .*=Epsilon and",
        ),
    ],
)
def test_a_module_of_another_prediction_or_process_refuses_the_weights(
    schedule: Any, settings: dict[str, Any], message: str, saved: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load(saved, schedule, **settings)
    other = DiffusionModule(small_module().network, schedule, **settings)
    with pytest.raises(ValueError, match=message):
        fit(other, 4, ckpt_path=saved)


def test_a_module_of_the_same_meaning_loads_the_weights_whatever_its_objective_and_sampler(saved: Path) -> None:
    settings: dict[str, Any] = {"prediction": V(), "objective": Denoising(V()), "sampler": "heun"}
    module = load(saved, GaussianProcess(LINEAR), **settings)
    state = torch.load(saved, weights_only=True)
    assert torch.equal(weights(module.network)[:9], state["state_dict"][next(iter(state["state_dict"]))].flatten()[:9])


def test_a_checkpoint_without_the_record_is_loaded(saved: Path, tmp_path: Path) -> None:
    state = torch.load(saved, weights_only=True)
    assert state[MEANING_KEY]["prediction"] == {"name": "V"}
    del state[MEANING_KEY]
    torch.save(state, tmp_path / "earlier.ckpt")
    load(tmp_path / "earlier.ckpt", CosineSchedule(20))


def test_the_meaning_of_weights_does_not_depend_on_the_clipping_of_a_predicted_mean() -> None:
    modules = [
        DiffusionModule(small_module().network, LINEAR, prediction=PosteriorMean(clip_mean=clip_mean))
        for clip_mean in (True, False)
    ]
    assert modules[0].weights_meaning() == modules[1].weights_meaning()
    assert [module.conventions() for module in modules] == [{}, {"clip_mean": False}]


def test_a_setting_that_the_record_does_not_have_is_accepted(saved: Path, tmp_path: Path) -> None:
    state = torch.load(saved, weights_only=True)
    del state[MEANING_KEY]["process"]["schedule"]["zero_terminal_snr"]  # as if a later version had added it
    torch.save(state, tmp_path / "earlier.ckpt")
    load(tmp_path / "earlier.ckpt", LINEAR, prediction=V())


def test_a_fork_may_change_the_meaning_of_the_weights(saved: Path, tmp_path: Path) -> None:
    _copy_checkpoint_to_fork(saved, tmp_path / "last.ckpt")
    fork = DiffusionModule(small_module().network, CosineSchedule(20))
    trainer = fit(fork, 4, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 4


def test_a_network_with_another_epsilon_refuses_the_weights(tmp_path: Path) -> None:
    def network(**settings: Any) -> UNet:
        return UNet(1, 1, resolution=8, channels=32, channel_multipliers=(1,), blocks=Blocks(**settings))

    ddpm = DiffusionModule(network(norm_eps=1e-6), LINEAR)
    fit(ddpm, 1, callbacks=[SaveLast(str(tmp_path), every_n_steps=1)])
    settings: dict[str, Any] = {"process": GaussianProcess(LINEAR)}
    DiffusionModule.load_from_checkpoint(tmp_path / "last.ckpt", network=network(norm_eps=1e-6), **settings)
    with pytest.raises(ValueError, match=r"trained with conventions\.norm_eps=1e-06, but this module has"):
        DiffusionModule.load_from_checkpoint(tmp_path / "last.ckpt", network=network(), **settings)


def test_a_classifier_of_another_process_refuses_the_weights(tmp_path: Path) -> None:
    def settings(schedule: Any) -> dict[str, Any]:
        network = HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=())
        process = GaussianProcess(schedule)
        optimizer = OptimizerFactory(torch.optim.Adam, lr=1e-3)
        return {"network": network, "process": process, "times": Uniform(schedule), "optimizer": optimizer}

    fit(ClassifierModule(**settings(LINEAR)), 1, callbacks=[SaveLast(str(tmp_path), every_n_steps=1)])
    ClassifierModule.load_from_checkpoint(tmp_path / "last.ckpt", **settings(LINEAR))
    with pytest.raises(ValueError, match=r"process\.schedule=LinearSchedule, .* has process\.schedule=CosineSchedule"):
        ClassifierModule.load_from_checkpoint(tmp_path / "last.ckpt", **settings(CosineSchedule(20)))


class _Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_loading_a_checkpoint_runs_neither_a_pickle_nor_a_function_that_it_names(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's default is then what it is for a URL
    content = torch.load(saved, weights_only=True)
    torch.save(content | {"more": _Payload(tmp_path / "pickle")}, tmp_path / "pickle.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "pickle.ckpt", LINEAR, prediction=V())
    named = {"_instantiator": "os.mkdir", "path": str(tmp_path / "named")}
    torch.save(content | {"hyper_parameters": named}, tmp_path / "named.ckpt")
    with pytest.raises(ValueError, match=r"not in the allowlist"):
        load(tmp_path / "named.ckpt", LINEAR, prediction=V())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["named.ckpt", "pickle.ckpt"]
