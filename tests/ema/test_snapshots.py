"""Files of averages, and averages of other lengths that are computed from them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lab.ema.averages import EMA, ConstantDecay, PowerFunctionDecay
from diffusion_lab.ema.post_hoc import Profile, combination
from diffusion_lab.ema.snapshots import Snapshot, combined, save_averages, saved_averages

TRACKED = {"shorter": 0.03, "between": 0.07, "longer": 0.15, "longest": 0.2}


def averages(network: nn.Module) -> EMA:
    """Return the two averages that are saved, and the averages with which the reconstructions are compared."""
    tracked = {name: PowerFunctionDecay(width) for name, width in TRACKED.items()}
    return EMA(network, {"main": PowerFunctionDecay(0.1), "narrow": PowerFunctionDecay(0.05), **tracked})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3))


def random_step(layers: nn.Sequential, step: int) -> None:
    """Change every weight and the statistics of the normalization at random."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        layers(torch.randn(5, 7, generator=generator))


def relative_error(state: dict[str, torch.Tensor], layers: nn.Module) -> float:
    expected = dict(layers.named_parameters())
    error = torch.cat([(state[name] - parameter).flatten() for name, parameter in expected.items()])
    return float(error.norm() / torch.cat([parameter.flatten() for parameter in expected.values()]).norm())


@pytest.fixture(scope="module")
def random_walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[EMA, Path]:
    """Averages of a random walk of 2000 steps, and the folder in which they were saved every 40 steps."""
    folder = tmp_path_factory.mktemp("ema")
    layers = network()
    ema = averages(layers)
    for step in range(1, 2001):
        random_step(layers, step)
        ema.update(layers)
        if step % 40 == 0:
            save_averages(ema, folder)
    return ema, folder


@pytest.fixture(scope="module")
def snapshots(random_walk: tuple[EMA, Path]) -> list[Snapshot]:
    return saved_averages(random_walk[1])


@pytest.mark.parametrize("name", TRACKED)
def test_the_reconstructed_average_is_the_tracked_average_up_to_a_thousandth(
    name: str, random_walk: tuple[EMA, Path], snapshots: list[Snapshot]
) -> None:
    ema, _ = random_walk
    saved = [snapshot for snapshot in snapshots if snapshot.name in ("main", "narrow")]
    assert len(saved) == 100
    found = combination([snapshot.profile for snapshot in saved], Profile(TRACKED[name], 2000))
    tracked = ema.networks[name]
    assert relative_error(combined(saved, found.coefficients), tracked) < 1e-3
    assert relative_error(dict(ema.networks["narrow"].named_parameters()), tracked) > 1e-2  # the averages differ


def test_a_file_has_the_width_of_each_power_function_average_and_loads_with_weights_only(tmp_path: Path) -> None:
    layers = network()
    decays = {"main": PowerFunctionDecay(0.1), "constant": ConstantDecay(0.9), "narrow": PowerFunctionDecay(0.05)}
    ema = EMA(layers, decays)
    for step in (1, 2, 3):
        random_step(layers, step)
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


def test_buffers_are_those_of_the_last_snapshot_not_a_sum(snapshots: list[Snapshot]) -> None:
    saved = snapshots[:18]  # the first three files
    state = combined(saved, [1 / 18] * 18)
    assert int(state["1.num_batches_tracked"]) == 3 * 40
    last = torch.load(saved[-1].path, weights_only=True)["averages"]["main"]["buffers"]
    assert torch.equal(state["1.running_mean"], last["1.running_mean"])
    network().load_state_dict(state)  # strict: all names and shapes


def test_snapshots_are_sorted_by_step_and_not_by_file_name(tmp_path: Path) -> None:
    ema = averages(network())
    for step in (9_999_999, 10_000_000, 20):
        ema.num_updates = step
        save_averages(ema, tmp_path)
    steps = [snapshot.profile.step for snapshot in saved_averages(tmp_path)]
    assert steps == [20] * 6 + [9_999_999] * 6 + [10_000_000] * 6


def test_the_error_for_a_damaged_file_contains_its_name(random_walk: tuple[EMA, Path], tmp_path: Path) -> None:
    content = saved_averages(random_walk[1])[0].path.read_bytes()
    (tmp_path / "step_0000040.pt").write_bytes(content[:2000])
    with pytest.raises(ValueError, match=r"step_0000040\.pt is damaged"):
        saved_averages(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [(lambda c: c.pop("averages"), "KeyError: 'averages'"), (lambda c: c.update(averages=[1]), "AttributeError"),
     (lambda c: c.update(step=10**400), "step must be a whole number in"),
     (lambda c: c["averages"]["main"].update(relative_width=float("nan")), "relative_width must be a number"),
     (lambda c: c["averages"]["main"].update(parameters={}), "its tensors are not those of the other files"),
     (lambda c: c["averages"]["main"]["buffers"].update(x=torch.zeros(1).expand(10**12)), "more values than the file")],
)  # fmt: skip
def test_a_snapshot_with_other_content_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], object], error: str, random_walk: tuple[EMA, Path], tmp_path: Path
) -> None:
    first, second = sorted(random_walk[1].glob("*.pt"))[:2]
    shutil.copy(first, tmp_path)
    content = torch.load(second, weights_only=True)
    change(content)
    torch.save(content, tmp_path / second.name)
    with pytest.raises(ValueError, match=rf"{second.name} must contain averages, .*{error}"):
        saved_averages(tmp_path)
