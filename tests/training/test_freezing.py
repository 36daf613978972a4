"""Frozen parameters keep their values, are not optimized, and a run that has them resumes to the bit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.training import DiffusionModule, Muon, OptimizerFactory
from diffusion_lab.training.freezing import freeze
from support.networks import small_unet
from support.small_runs import fit, small_module, weights

OPTIMIZERS = {
    "adamw": OptimizerFactory(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, decay_matrices_only=True),
    "muon": OptimizerFactory(Muon, lr=1e-2, weight_decay=0.1),
}


def frozen_module(optimizer: str) -> DiffusionModule:
    module = small_module()
    module.optimizer = OPTIMIZERS[optimizer]
    freeze(module.network, ["down.*", "*.norm_in.bias"])
    return module


def is_frozen(name: str) -> bool:
    return name.startswith("down.") or name.endswith(".norm_in.bias")


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.full)])
def test_a_resumed_run_with_frozen_parameters_equals_an_uninterrupted_run(optimizer: str, tmp_path: Path) -> None:
    uninterrupted, first, resumed = (frozen_module(optimizer) for _ in range(3))
    start = {name: tensor.clone() for name, tensor in uninterrupted.network.named_parameters()}
    trainer = fit(uninterrupted, 4)
    fit(first, 2, callbacks=[SaveLast(str(tmp_path), every_n_steps=2)])
    fit(resumed, 4, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))
    assert torch.equal(weights(resumed.ema.network), weights(uninterrupted.ema.network))

    average: Any = dict(uninterrupted.ema.network.named_parameters())
    for name, parameter in uninterrupted.network.named_parameters():
        assert torch.equal(parameter, start[name]) == is_frozen(name), name
        assert not is_frozen(name) or torch.equal(average[name], start[name]), name
    optimized = sum(len(group["params"]) for group in trainer.optimizers[0].param_groups)
    assert optimized == sum(not is_frozen(name) for name in start) == 92


def test_a_pattern_without_a_match_names_parameters() -> None:
    examples = "time_embedding.layers.0.weight, conv_in.weight, middle.0.norm_in.weight, down.0.0.norm_in.weight, "
    examples += "up.0.0.norm_in.weight, norm_out.weight"
    message = f"`freeze` must match names such as {examples}, got dwn.*, which matches none."
    with pytest.raises(ValueError, match=re.escape(message)):
        freeze(small_unet(), ["down.*", "dwn.*"])


def test_at_least_one_parameter_must_be_trained() -> None:
    with pytest.raises(ValueError, match=r"`freeze` must leave parameters to train, got \[a-m\]\*, \[n-z\]\*, which"):
        freeze(small_unet(), ["[a-m]*", "[n-z]*"])
