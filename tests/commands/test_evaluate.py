"""`src/evaluate.py` and `src/show_schedule.py` on a small run, in processes of their own."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import ROOT, TINY, run

READ = ["metrics.bound.split=train", "metrics.bound.num_images=10", "num_pictures=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on eight steps of noise, with a learned variance."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *TINY, "schedule=cosine", "objective=hybrid", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def numbers(folder: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return content


def test_one_call_gives_all_numbers_and_pictures(trained: Path, tmp_path: Path) -> None:
    done = run(
        "evaluate.py", f"run={trained}", "metrics=[fid,bound,reconstruction]", "num_samples=20",
        "metrics.bound.split=train", "metrics.bound.num_images=10", "metrics.reconstruction.split=train",
        "metrics.reconstruction.num_images=10", "num_pictures=16", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path)
    assert set(found) == {"fd_fashion_cnn_20_train", "bits_bound_train_10", "reconstruction_rmse_train_10", "minutes"}
    assert re.search(r"bits_bound_train_10 .* \d+\.\d{3}", done.stdout)
    assert re.search(r"peak memory, GB .* \d\.\d\d", done.stdout)
    with (tmp_path / "bits_bound_train_10.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["term"] for row in rows] == [f"L_{k}" for k in range(9)]
    assert sum(float(row["bits_per_dimension"]) for row in rows) == pytest.approx(found["bits_bound_train_10"])
    for picture, least in (("bits_bound_train_10.png", 500), ("samples.png", 8 * 58)):
        with Image.open(tmp_path / picture) as image:
            assert image.width > least


def test_numbers_do_not_depend_on_batches_or_processes(trained: Path, tmp_path: Path) -> None:
    settings = [f"run={trained}", "metrics=[bound,fid]", "num_samples=21", *READ]
    layouts = {"one": [], "batches": ["batch_size=3"], "processes": ["trainer.devices=2", "batch_size=4"]}
    found, distance = {}, "fd_fashion_cnn_21_train"
    for name, layout in layouts.items():
        done = run("evaluate.py", *settings, *layout, "trainer.precision=32-true", f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        found[name] = numbers(tmp_path / name)
    for other in ("batches", "processes"):
        assert found[other]["bits_bound_train_10"] == pytest.approx(found["one"]["bits_bound_train_10"], rel=1e-5)
        assert found[other][distance] == pytest.approx(found["one"][distance], rel=1e-3)


def test_a_sweep_of_samplers_ends_with_a_table(trained: Path, tmp_path: Path) -> None:
    done = run(
        "evaluate.py", "-m", f"run={trained}", "sampler=ddim,ancestral", "sampler.num_steps=2,4", "num_pictures=0",
        "num_samples=20", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["sampler.num_steps"]) for row in rows] == [
        ("ancestral", "2"), ("ancestral", "4"), ("ddim", "2"), ("ddim", "4"),
    ]  # fmt: skip
    assert all(float(row["fd_fashion_cnn_20_train"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"run must be the folder of a run \(run=logs/train/\.\.\.\), got nothing\."),
        (["run=/nowhere"], r"run must be the folder of a run, got /nowhere: config\.yaml is missing\."),
        (["run=TRAINED", "checkpoint=best.ckpt"], r"run must be .*: checkpoints/best\.ckpt is missing\."),
        (
            ["run=TRAINED", "sampler=ddim", "sampler.num_steps=9"],
            r"sampler: num_steps must be at most .* 8 steps, got 9\.",
        ),
        (["run=TRAINED", "sampler.num_stepz=9"], r"sampler\.num_stepz is not a setting in sampler: .*num_steps\."),
        (
            ["run=TRAINED", "metrics=reconstruction", "sampler=ddim", "sampler.eta=0.5"],
            r"metrics\.reconstruction\.quantity: sampler must be ddim with eta 0 to encode images, got eta=0\.5\.",
        ),
        (["run=TRAINED", "metrics=bound", "metrics.bound.split=test"], r"data\.path=.* with a split 'test': .*"),
        (["run=TRAINED", "reference=tset"], r"reference must be one of train, or a file of statistics .*, got tset\."),
        (
            ["run=TRAINED", "features=inception", "features.weights=no.pth"],
            r"features\.weights must be .*no\.pth.*",
        ),
        (["run=TRAINED", "metrics=sfid"], r"metrics\.sfid: features must have the output 'spatial' .*fashion_cnn.*"),
        (["run='/nowhere/*'"], r"run must be the folder of a run, or a pattern of such, got /nowhere/\*, which .*"),
        (
            ["run=TRAINED", "weights=raw", "trainer.compile=true"],
            r"trainer\.compile must be false for weights=raw, a fresh copy for each batch, got True\.",
        ),
        (["run=TRAINED", "weights=slow"], r"weights must be main or raw, got slow\."),
        (
            ["run=TRAINED", "metrics=fidd"],
            r"metrics must be one of bound, .*, got fidd; perhaps you mean fid\.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(trained: Path, arguments: list[str], sentence: str, tmp_path: Path) -> None:
    words = [word.replace("TRAINED", str(trained)) for word in arguments]
    done = run("evaluate.py", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {sentence}", done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_schedules_are_drawn_beside_each_other(tmp_path: Path) -> None:
    done = run("show_schedule.py", "schedule=linear,jsd,edm", "schedule.num_timesteps=20", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^linear .*num_timesteps=20.*alpha / sigma at the end: 2\.11$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^jsd .*alpha / sigma at the end: 0$", done.stdout, flags=re.MULTILINE)
    with Image.open(tmp_path / "schedules.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["schedule=linear", "beside=[cosin]"], "schedule must be one of .*, got cosin; perhaps you mean cosine.*"),
        (["image=10000"], r"image must be in 0\.\.9999, got 10000\."),
        (["schedule=custom", "schedule.betas=[0.5,2]"], r"schedule: betas must be in \[0, 1\], got 2; .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_schedule_that_cannot_be_drawn_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = run("show_schedule.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {sentence}", done.stderr.strip()), done.stderr


def test_runs_given_as_a_pattern_make_one_table(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    done = run(
        "evaluate.py", f'run="{tmp_path}/runs/*"', "num_samples=20", "batch_size=20", "metrics=[fid,kid,is]",
        "num_pictures=0", f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trained"] for row in rows] == ["a", "b"]
    assert rows[0]["fd_fashion_cnn_20_train"] == rows[1]["fd_fashion_cnn_20_train"]  # the same network
    record = json.loads((tmp_path / "out" / "1_b" / "metrics.json").read_text())
    assert [number["name"] for number in record["numbers"]] == [
        "fd_fashion_cnn_20_train", "kid_fashion_cnn_20_train", "kid_std_fashion_cnn_20_train", "is_fashion_cnn_20",
        "is_std_fashion_cnn_20",
    ]  # fmt: skip
    assert record["step"] == 2
    assert set(record["seconds"]) == {"sampling", "features", "statistics"}


def test_statistics_in_a_file_are_a_reference_and_carry_its_name(trained: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "clothes.npz", mu=np.zeros(128), sigma=np.eye(128))
    settings = [f"run={trained}", "num_samples=20", "batch_size=20", "num_pictures=0"]
    done = run("evaluate.py", *settings, f"reference={tmp_path}/clothes.npz", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "fd_fashion_cnn_20_clothes" in numbers(tmp_path / "out")
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    done = run("evaluate.py", *settings, f"reference={tmp_path}/other.npz", f"hydra.run.dir={tmp_path / 'out2'}")
    assert done.stderr.strip().splitlines()[-1].endswith("must be of 128 features, as fashion_cnn has, got 7.")


def test_processes_that_others_started_share_the_work(trained: Path, tmp_path: Path) -> None:
    """As under torchrun; without trainer=ddp each would do all of it, and that is refused."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    job = [str(ROOT / "src" / "evaluate.py"), f"run={trained}", "num_samples=25", "batch_size=10", "num_pictures=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, words in {"shared": ["trainer=ddp", "trainer.accelerator=cpu"], "refused": []}.items():
        command = [*starter, *job, *words, f"hydra.run.dir={tmp_path / name}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (name == "shared"), done.stderr
    assert "trainer must be of the 2 processes that torchrun started here, got one: trainer=ddp." in done.stderr
    alone = run("evaluate.py", *job[1:], f"hydra.run.dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    found, expected = (numbers(tmp_path / name)["fd_fashion_cnn_25_train"] for name in ("shared", "alone"))
    assert found == pytest.approx(expected, rel=1e-9)
