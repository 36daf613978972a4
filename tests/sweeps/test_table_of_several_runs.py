"""Table of sweeps whose evaluations measure several runs each: `evaluate.py -m run=SWEEP sampler.num_steps=2,4`."""

import csv
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from diffusion_lab.reporting import plots
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.results import write_metrics
from diffusion_lab.sweeps.table import write_sweep_table

METRIC = "fd_a_9_train"


def write_configs(folder: Path, overrides: Sequence[str], choices: dict[str, str], config: dict[str, Any]) -> None:
    hydra = {"hydra": {"runtime": {"choices": choices}}}
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, content in (("overrides", list(overrides)), ("hydra", hydra), ("config", config)):
        OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")


def write_command(folder: Path, *typed: str) -> None:
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": {"task": list(typed)}}}), folder / "multirun.yaml")


def trained(folder: Path, *, lr: float = 1e-4, seeds: Sequence[int] = (1, 2)) -> list[Path]:
    """Write the runs of `train.py -m schedule=linear,cosine seed=1,2`."""
    runs = []
    for schedule, seed in itertools.product(["cosine", "linear"], seeds):
        runs.append(folder / f"schedule-{schedule}_seed-{seed}")
        config = {"seed": seed, "optimizer": {"lr": lr}, "schedule": {"_target_": schedule}}
        write_configs(runs[-1], [f"schedule={schedule}", f"seed={seed}"], {"schedule": schedule}, config)
    write_command(folder, "schedule=linear,cosine", f"seed={','.join(map(str, seeds))}")
    return runs


def start(sweep: Path, steps: int) -> Path:
    """Write the files with which an evaluation of a sweep starts."""
    folder = sweep / f"sampler.num_steps-{steps}"
    config = {"seed": 0, "run": "cut", "sampler": {"num_steps": steps}}
    write_configs(folder, ["run=cut", f"sampler.num_steps={steps}"], {"sampler": "ddim"}, config)
    run_status.mark_running(folder)
    return folder


def measure(folder: Path, runs: Sequence[Path], steps: int, **fields: Any) -> None:
    for number, run in enumerate(runs):
        name = "CosineSchedule" if "cosine" in run.name else "LinearSchedule"
        sampler = {"name": "DDIM", "num_steps": steps}
        fingerprint = {"num_samples": 9, "seed": 0, "schedule": {"name": name}, "sampler": sampler, **fields}
        values = [{"name": METRIC, "value": float(10 * steps + number), "fingerprint": fingerprint}]
        write_metrics(folder / f"{number}_{run.name}", {"run": str(run), "step": 4, "numbers": values})
    run_status.mark_finished(folder, 1.0)


def evaluated(sweep: Path, runs: Sequence[Path]) -> Path:
    """Write the results of `evaluate.py -m run=cut sampler.num_steps=4,2`."""
    for steps in (2, 4):
        measure(start(sweep, steps), runs, steps)
    write_command(sweep, "run=cut", "sampler.num_steps=4,2")
    return sweep


def table(folder: Path, name: str = "sweep") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_settings_of_the_measured_runs_are_compared_in_the_order_of_both_commands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = evaluated(tmp_path / "evaluate", trained(tmp_path / "cut"))
    assert write_sweep_table(sweep)
    assert not caplog.records
    shown = ("sampler.num_steps", "schedule", "trained.seed", METRIC)
    assert [tuple(row[name] for name in shown) for row in table(sweep)] == [
        ("4", "linear", "1", "42.0"), ("4", "linear", "2", "43.0"),
        ("4", "cosine", "1", "40.0"), ("4", "cosine", "2", "41.0"),
        ("2", "linear", "1", "22.0"), ("2", "linear", "2", "23.0"),
        ("2", "cosine", "1", "20.0"), ("2", "cosine", "2", "21.0"),
    ]  # fmt: skip
    header = (sweep / "sweep.md").read_text().splitlines()[0]
    assert header == f"| sampler.num_steps | schedule | trained.seed | state | step | {METRIC} | duration |"


def test_their_values_are_averaged_over_the_seeds_of_the_training_and_plotted_against_the_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted: list[Any] = []
    monkeypatch.setattr(plots, "save_against", lambda *arguments: plotted.append(arguments))
    sweep = evaluated(tmp_path / "evaluate", trained(tmp_path / "cut"))
    assert write_sweep_table(sweep)
    shown = ("sampler.num_steps", "schedule", "num_seeds", f"mean_{METRIC}")
    assert [tuple(row[name] for name in shown) for row in table(sweep, "sweep_over_seeds")] == [
        ("4", "linear", "2", "42.5"), ("4", "cosine", "2", "40.5"), ("2", "linear", "2", "22.5"),
        ("2", "cosine", "2", "20.5"),
    ]  # fmt: skip
    assert (sweep / "against_sampling_steps.png").is_file()
    ((panels, key, order, _),) = plotted  # none against trained.seed
    assert (key, order) == ("schedule", ["linear", "cosine"])
    (lines,) = panels.values()
    assert {label: [(x, mean) for x, mean, _ in points] for label, points in lines.items()} == {
        "sampler.num_steps=4": [("linear", 42.5), ("cosine", 40.5)],
        "sampler.num_steps=2": [("linear", 22.5), ("cosine", 20.5)],
    }


def test_an_evaluation_that_failed_hides_no_setting_of_the_others(tmp_path: Path) -> None:
    sweep = tmp_path / "evaluate"
    measure(start(sweep, 2), trained(tmp_path / "cut"), 2)
    run_status.mark_failed(start(sweep, 4), "RuntimeError: no")
    assert write_sweep_table(sweep)
    shown = ("sampler.num_steps", "trained", "schedule", "trained.seed", "state")
    rows = [tuple(row[name] for name in shown) for row in table(sweep)]
    assert rows[0] == ("2", "schedule-linear_seed-1", "linear", "1", "finished")
    assert rows[-1] == ("4", "", "", "", "failed")


def test_runs_that_no_setting_tells_apart_are_named(tmp_path: Path) -> None:
    runs = [*trained(tmp_path / "cut", seeds=[1]), *trained(tmp_path / "other", seeds=[1])]
    sweep = evaluated(tmp_path / "evaluate", runs)
    assert write_sweep_table(sweep)
    assert (sweep / "sweep.md").read_text().startswith("| run | trained | sampler.num_steps | schedule |")
    assert not (sweep / "sweep_over_seeds.csv").exists()


def test_values_that_remain_incomparable_stay_in_the_file_with_the_field_that_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, runs = tmp_path / "evaluate", trained(tmp_path / "cut")
    for number, steps in enumerate((2, 4)):
        measure(
            start(sweep, steps), runs, steps, reference={"sha256": "ab"[number]}, precision=("32-true", "16")[number]
        )
    caplog.set_level(logging.INFO)
    assert not write_sweep_table(sweep)
    first, second = caplog.records
    assert (first.levelname, second.levelname) == ("WARNING", "INFO")  # the exit status of an evaluation is 0
    assert "precision is 32-true in" in first.message
    assert "--allow precision reference" in second.message or "--allow reference precision" in second.message
    rows = table(sweep)
    shown = (METRIC, "schedule", "precision", "reference.sha256")
    assert tuple(rows[0][name] for name in shown) == ("22.0", "linear", "32-true", "a")
    assert tuple(rows[-1][name] for name in shown) == ("41.0", "cosine", "16", "b")
    assert METRIC not in (sweep / "sweep.md").read_text()
    assert not list(sweep.glob("against_*.png"))


def test_equal_numbers_are_ordered_alike_however_they_were_typed(tmp_path: Path) -> None:
    runs = []
    for lr in (1e-4, 1e-3, 1e-2):
        runs.append(tmp_path / "cut" / f"lr-{lr}")
        write_configs(runs[-1], [f"optimizer.lr={lr}"], {"schedule": "linear"}, {"optimizer": {"lr": lr}})
    write_command(tmp_path / "cut", "optimizer.lr=1e-2,1e-4,1e-3")
    sweep = evaluated(tmp_path / "evaluate", runs)
    assert write_sweep_table(sweep)
    found = [row["optimizer.lr"] for row in table(sweep)]
    assert list(map(float, found)) == [1e-2, 1e-4, 1e-3] * 2
