"""A DiffusionModule with a plain `lightning.Trainer`: forms of its arguments, checkpoints and resuming."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from diffusion_lab.ema import EMA, ConstantDecay
from diffusion_lab.networks import Labels, UNet
from diffusion_lab.process import CosineSchedule
from diffusion_lab.process.gaussian import GaussianProcess
from diffusion_lab.training import DiffusionModule
from support.small_runs import FewImages, small_module, weights

PIXELS = FewImages().load().gather(torch.arange(24))  # uint8 [24, 1, 8, 8]


def train(module: DiffusionModule, max_steps: int, *callbacks: Callback, ckpt_path: Path | None = None) -> None:
    """Train with 6 images per step in a fixed order: 4 steps per epoch."""
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, callbacks=[*callbacks], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(not have many workers|treespec|callbacks used to create).*")
        warnings.filterwarnings("error", message=".*in eval mode")
        trainer.fit(module, DataLoader(TensorDataset(PIXELS), batch_size=6), ckpt_path=ckpt_path)


def other_network(channels: int = 8, labels: Labels | None = None) -> UNet:
    return UNet(1, 1, resolution=8, channels=32, channel_multipliers=(1,) * (1 + (channels > 8)), labels=labels)


@pytest.mark.parametrize("settings", [{"every_n_epochs": 1}, {"every_n_train_steps": 4}], ids=str)
def test_a_run_that_resumes_at_the_end_of_an_epoch_equals_an_uninterrupted_run(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    complete = small_module()
    train(complete, 10, ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **settings))
    for step in (4, 8):
        resumed = small_module()
        train(resumed, 10, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert torch.equal(weights(resumed), weights(complete))


def test_averages_are_given_as_an_object_a_function_or_a_decay() -> None:
    network, decay = other_network(), ConstantDecay(0.9)
    modules = [
        DiffusionModule(network, CosineSchedule(20), ema=ema)
        for ema in (decay, EMA(network, {"main": decay}), lambda trained: EMA(trained, {"main": decay}))
    ]
    for module in modules:
        assert module.ema.decays == {"main": decay}
    with pytest.raises(ValueError, match="`ema` must be the EMA of the network of the module, got an EMA of another"):
        DiffusionModule(other_network(16), CosineSchedule(20), ema=modules[0].ema)
    with pytest.raises(ValueError, match="`ema` must be the EMA of the network of the module, got an EMA of another"):
        DiffusionModule(other_network(), CosineSchedule(20), ema=EMA(network, {"main": decay}))
    copied = copy.deepcopy(modules[0])  # its averages are those of the copied network
    assert DiffusionModule(copied.network, CosineSchedule(20), ema=copied.ema).ema is copied.ema
    with pytest.raises(ValueError, match=r"`ema` must be a Decay, such as .*, or a function .*, got 0.9"):
        DiffusionModule(network, CosineSchedule(20), ema=0.9)  # type: ignore[arg-type]


def test_the_averages_cause_no_warning_about_evaluation_mode_and_other_modules_do() -> None:
    train(small_module(), 1)
    module = small_module()
    module.network.eval()
    with pytest.raises(Warning, match="in eval mode at the start of training"):
        train(module, 1)


def test_labels_that_the_network_does_not_take_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    module = small_module()
    for step in range(2):
        module.training_step((PIXELS[:6], torch.zeros(6, dtype=torch.int64)), step)
    assert caplog.text.count("the batches have labels, which this network ignores") == 1


def test_a_checkpoint_has_the_names_of_the_classes_and_names_what_does_not_fit(tmp_path: Path) -> None:
    module = DiffusionModule(other_network(labels=Labels(3, dropout=0.1)), CosineSchedule(20))
    module.class_names = ["cat", "dog", "emu"]
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path := tmp_path / "last.ckpt")

    def load(network: UNet) -> DiffusionModule:
        loaded = DiffusionModule.load_from_checkpoint(
            path, network=network, process=GaussianProcess(CosineSchedule(20))
        )
        assert isinstance(loaded, DiffusionModule)
        return loaded

    assert load(other_network(labels=Labels(3, dropout=0.1))).class_names == ["cat", "dog", "emu"]
    message = "weights do not fit this module: network.label_embedding.weight, .* only in the checkpoint; .* its labels"
    with pytest.raises(RuntimeError, match=message):
        load(other_network())


def test_an_average_that_continues_with_another_decay_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, process = other_network(), GaussianProcess(CosineSchedule(20))
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(DiffusionModule(network, process, ema=ConstantDecay(0.9)))
    trainer.save_checkpoint(path := tmp_path / "last.ckpt")
    DiffusionModule.load_from_checkpoint(path, network=network, process=process, ema=ConstantDecay(0.9))
    assert "decay" not in caplog.text
    DiffusionModule.load_from_checkpoint(path, network=network, process=process)
    assert "`main` of the checkpoint was computed with ConstantDecay(decay=0.9) and continues with R" in caplog.text


def test_a_condition_may_be_given_as_labels() -> None:
    module, label = small_module(labels=Labels(3, dropout=0.1)), torch.tensor([2, 0])
    images: Tensor = module.sample(2, label, num_steps=2)
    assert torch.equal(images, module.sample(2, label=label, num_steps=2))
