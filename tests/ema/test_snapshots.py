"""Averages in files, and averages of other lengths out of them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lab.ema.averages import EMA, ConstantDecay, PowerFunctionDecay
from diffusion_lab.ema.post_hoc import Profile, combination
from diffusion_lab.ema.snapshots import combined, save_averages, saved_averages

TRACKED = {"shorter": 0.03, "between": 0.07, "longer": 0.15, "longest": 0.2}


def averages(network: nn.Module) -> EMA:
    """The two that are saved for reconstruction, and those that it is compared with."""
    wanted = {name: PowerFunctionDecay(width) for name, width in TRACKED.items()}
    return EMA(network, {"main": PowerFunctionDecay(0.1), "narrow": PowerFunctionDecay(0.05), **wanted})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3))


def walk(layers: nn.Sequential, step: int) -> None:
    """Moves every weight by a random step, and the statistics of the normalisation."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        layers(torch.randn(5, 7, generator=generator))


def relative_error(state: dict[str, torch.Tensor], layers: nn.Module) -> float:
    wanted = dict(layers.named_parameters())
    missed = torch.cat([(state[name] - parameter).flatten() for name, parameter in wanted.items()])
    return float(missed.norm() / torch.cat([parameter.flatten() for parameter in wanted.values()]).norm())


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[EMA, Path]:
    """Averages of a random walk of 2000 steps, saved every 40."""
    folder = tmp_path_factory.mktemp("ema")
    layers = network()
    ema = averages(layers)
    for step in range(1, 2001):
        walk(layers, step)
        ema.update(layers)
        if step % 40 == 0:
            save_averages(ema, folder)
    return ema, folder


@pytest.mark.parametrize("name", TRACKED)
def test_the_reconstructed_average_is_the_tracked_one_within_a_thousandth(name: str, walked: tuple[EMA, Path]) -> None:
    ema, folder = walked
    saved = [snapshot for snapshot in saved_averages(folder) if snapshot.name in ("main", "narrow")]
    assert len(saved) == 100
    made = combination([snapshot.profile for snapshot in saved], Profile(TRACKED[name], 2000))
    tracked = ema.networks[name]
    assert relative_error(combined(saved, made.coefficients), tracked) < 1e-3
    assert relative_error(dict(ema.networks["narrow"].named_parameters()), tracked) > 1e-2  # they are not all alike


def test_a_file_says_the_step_and_the_width_of_each_power_function_average_and_loads_safely(tmp_path: Path) -> None:
    layers = network()
    decays = {"main": PowerFunctionDecay(0.1), "constant": ConstantDecay(0.9), "narrow": PowerFunctionDecay(0.05)}
    ema = EMA(layers, decays)
    for step in (1, 2, 3):
        walk(layers, step)
        ema.update(layers)
    save_averages(ema, tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.name == "step_0000003.pt"
    content = torch.load(path, weights_only=True)
    assert {name: average["relative_width"] for name, average in content["averages"].items()} == {
        "main": 0.1, "narrow": 0.05,
    }  # fmt: skip
    state = {**content["averages"]["narrow"]["parameters"], **content["averages"]["narrow"]["buffers"]}
    assert all(torch.equal(state[name], value) for name, value in ema.networks["narrow"].state_dict().items())


def test_buffers_are_those_of_the_last_snapshot_not_a_sum(walked: tuple[EMA, Path]) -> None:
    saved = saved_averages(walked[1])[:18]  # the first three files
    state = combined(saved, [1 / 18] * 18)
    assert int(state["1.num_batches_tracked"]) == 3 * 40
    last = torch.load(saved[-1].path, weights_only=True)["averages"]["main"]["buffers"]
    assert torch.equal(state["1.running_mean"], last["1.running_mean"])
    network().load_state_dict(state)  # whole: every name, every shape


def test_snapshots_come_by_growing_step_whatever_the_names_of_their_files(tmp_path: Path) -> None:
    ema = averages(network())
    for step in (9_999_999, 10_000_000, 20):
        ema.num_updates = step
        save_averages(ema, tmp_path)
    steps = [snapshot.profile.step for snapshot in saved_averages(tmp_path)]
    assert steps == [20] * 6 + [9_999_999] * 6 + [10_000_000] * 6


def test_a_damaged_file_is_named(walked: tuple[EMA, Path], tmp_path: Path) -> None:
    whole = saved_averages(walked[1])[0].path.read_bytes()
    (tmp_path / "step_0000040.pt").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"step_0000040\.pt is damaged"):
        saved_averages(tmp_path)
