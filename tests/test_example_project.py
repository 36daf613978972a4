"""The package in examples/my_project, installed into a folder of its own, through all commands."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_lab.runs.trust import record
from support.commands import ROOT, TINY, run, table

PROJECT = ROOT / "examples" / "my_project"
SMALL = [
    *(override for override in TINY if not override.startswith("model")),
    *("--config-dir", str(PROJECT / "conf"), "experiment=shapes", "data.store.num_images=60"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(folder), str(PROJECT)], check=True, env={"PIP_NO_INDEX": "1", "PATH": ""})
    return folder


@pytest.fixture(scope="module")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = run("train.py", *SMALL, "callbacks.weight_norm.every_n_steps=1", "trainer.log_every_n_steps=1",
               f"hydra.run.dir={folder}", PYTHONPATH=str(installed))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_trains_the_network_on_the_images_and_logs_the_callback(trained: Path, installed: Path) -> None:
    assert [float(row["weight_norm"]) > 1 for row in table(trained / "metrics.csv")] == [True, True]
    environment = json.loads((trained / "environment.json").read_text())
    package = environment["packages"]["my_project"]
    assert package == {"version": "0.1", "folder": str(installed / "my_project")}


def test_a_run_resumes_from_another_folder_without_the_config_folder(
    trained: Path, installed: Path, tmp_path: Path
) -> None:
    done = run("train.py", f"resume={trained}", "trainer.max_steps=3", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in table(trained / "metrics.csv")] == ["1", "2", "3"]


def test_a_run_resumes_with_the_new_place_of_its_config_folder(trained: Path, installed: Path, tmp_path: Path) -> None:
    run_folder, conf = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    overrides = (run_folder / "overrides.yaml").read_text().replace(str(PROJECT / "conf"), str(tmp_path / "moved"))
    (run_folder / "overrides.yaml").write_text(overrides)
    resume = ["train.py", f"resume={run_folder}", "trainer.max_steps=5"]
    record(run_folder)
    refused = run(*resume, PYTHONPATH=str(installed))
    assert "--config-dir gives the new place of its folder" in refused.stderr.splitlines()[-1]
    done = run(*resume, "--config-dir", str(conf), PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_a_copied_run_needs_trust_in_the_package_and_is_then_recorded(
    trained: Path, installed: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(trained, tmp_path / "copied")
    words = {
        "sample": ["sample.py", f"run={copied}", "num_images=1", f"hydra.run.dir={tmp_path}/samples"],
        "evaluate": ["evaluate.py", f"run={copied}", "num_samples=10", f"hydra.run.dir={tmp_path}/evaluation"],
        "resume": ["train.py", f"resume={copied}", "trainer.max_steps=6"],
    }
    for command in words.values():
        refused = run(*command, PYTHONPATH=str(installed))
        assert refused.returncode == 1
        assert "model names my_project.FlatResNet" in (message := refused.stderr.splitlines()[-1])
        assert message.endswith("if you know who wrote this folder and trust this code, add trust=[my_project].")
    for command in (words["sample"], words["resume"]):
        done = run(*command, "trust=[my_project]", PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
    assert [row["step"] for row in table(copied / "metrics.csv")] == ["1", "2", "3", "4", "5", "6"]
    assert run("sample.py", f"run={copied}", "num_images=1", f"hydra.run.dir={tmp_path}/more",
               PYTHONPATH=str(installed)).returncode == 0  # fmt: skip


def test_a_run_uses_the_schedule_the_optimizer_and_the_learning_rate_schedule(installed: Path, tmp_path: Path) -> None:
    own = ["schedule=linear_log_snr", "optimizer=lion", "optimizer.lr=0.1", "lr_schedule=restarts"]
    done = run("train.py", *SMALL, *own, "lr_schedule.period=2", "trainer.max_steps=3", "trainer.log_every_n_steps=1",
               f"hydra.run.dir={tmp_path}", PYTHONPATH=str(installed))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "does not end in noise" not in done.stderr  # alpha / sigma is exp(-9 / 2) = 0.011
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "metrics.csv")]
    assert rates == pytest.approx([0.1, 0.05, 0.1])


def test_without_the_package_a_run_is_rejected_with_its_name(trained: Path) -> None:
    for script, *overrides in (
        ("train.py", f"resume={trained}", "trainer.max_steps=9"),
        ("sample.py", f"run={trained}"),
    ):
        done = run(script, *overrides)
        assert done.returncode == 1
        assert "or in a folder on PYTHONPATH, got my_project." in done.stderr.splitlines()[-1]


def test_a_renamed_layer_is_refused_by_sample_and_resume_as_changed_code(
    trained: Path, installed: Path, tmp_path: Path
) -> None:
    shutil.copytree(installed / "my_project", tmp_path / "my_project")
    network = tmp_path / "my_project" / "network.py"
    network.write_text(network.read_text().replace("conv_in", "conv_first"))
    for script, *overrides in (
        ("train.py", f"resume={trained}", "trainer.max_steps=9"),
        ("sample.py", f"run={trained}"),
    ):
        done = run(script, *overrides, PYTHONPATH=str(tmp_path))
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1
        assert last.startswith(f"error: `model` must have the tensors of {trained / 'checkpoints' / 'last.ckpt'}, got ")
        assert re.search(r"conv_(in|first)\..*; the code of the network .*has changed\.$", last), last


@pytest.mark.parametrize(
    ("launcher", "depths"), [("in_turn", "1,2"), pytest.param("local_parallel", "1,2", marks=pytest.mark.full)]
)
def test_a_sweep_finds_the_config_folder_in_every_run(
    launcher: str, depths: str, installed: Path, tmp_path: Path
) -> None:
    done = run("train.py", "-m", *SMALL, f"model.depth={depths}", f"hydra/launcher={launcher}",
               f"hydra.sweep.dir={tmp_path}", PYTHONPATH=str(installed))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in table(tmp_path / "sweep.csv")] == ["finished"] * len(depths.split(","))


def test_samples_and_evaluations_use_the_sampler_and_name_its_package(
    trained: Path, installed: Path, tmp_path: Path
) -> None:
    conf, folders = ["--config-dir", str(PROJECT / "conf")], [tmp_path / name for name in ("samples", "evaluation")]
    common = [f"run={trained}", f"work_folder={tmp_path}/work"]
    sampled = run("sample.py", *conf, *common, "sampler=midpoint", "sampler.num_steps=2", "num_images=3",
                  "save_npz=true", f"hydra.run.dir={folders[0]}", PYTHONPATH=str(installed))  # fmt: skip
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(next(folders[0].glob("*.npz")))["arr_0"].shape[:3] == (3, 28, 28)
    evaluated = run("evaluate.py", *common, "num_samples=10", "num_pictures=0", f"hydra.run.dir={folders[1]}",
                    PYTHONPATH=str(installed))  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    (number,) = json.loads((folders[1] / "metrics.json").read_text())["numbers"]
    assert number["fingerprint"]["sampler"]["name"] == "my_project.sampler.Midpoint"
    assert number["fingerprint"]["reference"]["size"] == 60
