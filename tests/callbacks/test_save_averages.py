"""Snapshots of averages that are saved during training."""

from pathlib import Path

import pytest
import torch

from diffusion_lab.callbacks.save_averages import SaveAverages
from diffusion_lab.ema.averages import EMA, PowerFunctionDecay
from diffusion_lab.ema.post_hoc import Profile, combination
from diffusion_lab.ema.snapshots import combined, saved_averages
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import fit, small_module, weights


def module_with_power_averages() -> DiffusionModule:
    module = small_module()
    widths = {"main": 0.1, "narrow": 0.05, "tracked": 0.15}
    module.ema = EMA(module.network, {name: PowerFunctionDecay(width) for name, width in widths.items()})
    return module


@pytest.mark.full
def test_an_average_of_any_length_is_reconstructed_within_a_thousandth(tmp_path: Path) -> None:
    module = module_with_power_averages()
    fit(module, 24, callbacks=[SaveAverages(str(tmp_path), every_n_steps=2)])
    saved = [snapshot for snapshot in saved_averages(tmp_path) if snapshot.name != "tracked"]
    tracked = weights(module.ema.networks["tracked"])
    reconstruction = combination([snapshot.profile for snapshot in saved], Profile(0.15, 24))
    other = small_module().network
    other.load_state_dict(combined(saved, reconstruction.coefficients))
    assert (weights(other) - tracked).norm() < 1e-3 * tracked.norm()
    assert (weights(module.ema.network) - tracked).norm() > 1e-3 * tracked.norm()  # so the weights did change


def test_averages_are_saved_every_n_steps_and_at_the_end_however_batches_are_accumulated(tmp_path: Path) -> None:
    module = module_with_power_averages()
    fit(module, 7, callbacks=[SaveAverages(str(tmp_path), every_n_steps=3)], accumulate_grad_batches=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_000000{step}.pt" for step in (3, 6, 7)]
    saved = torch.load(tmp_path / "step_0000007.pt", weights_only=True)["averages"]["narrow"]["parameters"]
    assert torch.equal(torch.cat([value.flatten() for value in saved.values()]), weights(module.ema.networks["narrow"]))


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.Trainer.is_global_zero", False)
    fit(module_with_power_averages(), 2, callbacks=[SaveAverages(str(tmp_path), every_n_steps=1)])
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_power_function_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ema\.decays must contain a PowerFunctionDecay .*, got RampedDecay; try ema=power\."
    ):
        fit(small_module(), 2, callbacks=[SaveAverages(str(tmp_path), every_n_steps=1)])
