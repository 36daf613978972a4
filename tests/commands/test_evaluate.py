"""`src/evaluate.py` and `src/show_schedule.py` on a small run, in separate processes."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.reporting.csv_files import read_csv
from diffusion_lab.runs.tables.comparable import write_and_print_table
from support.commands import ROOT, TINY, run, start

ONE_MEAN = ["metrics.bound.split=train", "metrics.bound.num_images=10", "num_pictures=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 300 images with a schedule of eight steps and a learned variance."""
    folder = tmp_path_factory.mktemp("trained")
    changes = ["schedule=cosine", "objective=hybrid", "data.max_images=300", "data.num_held_out=12"]
    done = run("train.py", *TINY, *changes, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def numbers(folder: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return content


def test_one_evaluation_gives_all_numbers_and_pictures(trained: Path, tmp_path: Path) -> None:
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
    costs = {line.split(":")[0]: line for line in done.stdout.splitlines() if line.startswith("cost of ")}
    each = "for 10 images of train ({} evaluations of the network each)"
    assert costs["cost of bits_bound"].endswith(each.format(8))
    assert costs["cost of reconstruction_rmse"].endswith(each.format(16))  # from images to noise and back
    assert "20 generated images" in costs["cost of fashion_cnn features"]
    with (tmp_path / "bits_bound_train_10.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["term"] for row in rows] == [f"L_{k}" for k in range(9)]
    assert sum(float(row["bits_per_dimension"]) for row in rows) == pytest.approx(found["bits_bound_train_10"])
    for picture, least in (("bits_bound_train_10.png", 500), ("samples.png", 8 * 58)):
        with Image.open(tmp_path / picture) as image:
            assert image.width > least


def test_a_likelihood_is_measured_on_the_images_that_the_run_held_out_and_generates_no_images(
    trained: Path, tmp_path: Path
) -> None:
    settings = ["metrics=nll", "metrics.nll.num_images=5"]
    out = [f"output_folder={tmp_path / 'out'}", "weights=raw"]
    done = run("evaluate.py", f"run={trained}", *settings, *out, f"hydra.run.dir={tmp_path / 'job'}")
    assert done.returncode == 0, done.stderr
    assert set(numbers(tmp_path / "out")) == {"bits_bound_held_out_5", "minutes"}
    assert re.search(r"weights +│ raw ", done.stdout)
    assert "no images are generated, because no metric needs samples; num_pictures=80 generates a grid" in done.stdout
    assert not (tmp_path / "out" / "samples.png").exists()
    done = run("evaluate.py", f"run={trained}", *settings, "num_pictures=3", f"hydra.run.dir={tmp_path / 'grid'}")
    assert "for 3 images" in done.stdout
    assert (tmp_path / "grid" / "samples.png").is_file()
    folders = [tmp_path / "out", tmp_path / "grid"]
    assert write_and_print_table(folders, tmp_path, "numbers", allowed=["weights"])
    rows = read_csv(tmp_path / "numbers.csv")
    assert [(row["weights"], row["metrics.bound.num_images"]) for row in rows] == [("raw", "5"), ("main", "5")]
    assert not {"sampler", "sampler.num_steps", "num_samples", "features"} & set(rows[0])


@pytest.mark.full
def test_numbers_do_not_depend_on_batch_size_or_ranks(trained: Path, tmp_path: Path) -> None:
    settings = [f"run={trained}", "metrics=[bound,fid]", "num_samples=21", *ONE_MEAN]
    layouts = {"one": [], "batches": ["batch_size=3"], "processes": ["trainer.devices=2", "batch_size=4"]}
    found, distance = {}, "fd_fashion_cnn_21_train"
    for name, layout in layouts.items():
        done = run("evaluate.py", *settings, *layout, "trainer.precision=32-true", f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        found[name] = numbers(tmp_path / name)
    for other in ("batches", "processes"):
        assert found[other]["bits_bound_train_10"] == pytest.approx(found["one"]["bits_bound_train_10"], rel=1e-5)
        assert found[other][distance] == pytest.approx(found["one"][distance], rel=1e-3)


@pytest.mark.full
def test_a_sweep_of_samplers_ends_with_a_table(trained: Path, tmp_path: Path) -> None:
    done = run(
        "evaluate.py", "-m", f"run={trained}", "sampler=ddim,ancestral", "sampler.num_steps=2,4", "num_pictures=0",
        "num_samples=20", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["sampler.num_steps"]) for row in rows] == [
        ("ddim", "2"), ("ddim", "4"), ("ancestral", "2"), ("ancestral", "4"),
    ]  # fmt: skip
    assert all(float(row["fd_fashion_cnn_20_train"]) > 0 for row in rows)
    assert "peak memory" not in done.stdout
    assert len(re.findall(r"^\S+, last\.ckpt, step \d+: fd_fashion_cnn_20_train [\d.]+$", done.stdout, re.M)) == 4


OTHER_INVALID_SETTINGS: list[tuple[list[str], str]] = [
    (
        ["run=TRAINED", "sampler=ddim", "sampler.num_steps=9"],
        r"sampler.num_steps must be at most .* 8 steps, got 9\.",
    ),
    (["run=TRAINED", "sampler.num_stepz=9"], r"sampler\.num_stepz is not a setting in sampler; .*num_steps; .*"),
    (["run=TRAINED", "num_samples=many"], r"num_samples must be a whole number of at least 1, got many\."),
    (["run='/nowhere/*'"], r"`run` must be a run folder, .* got /nowhere/\*, which matches nothing\."),
    (
        ["run=TRAINED", "guidance_scale=2"],
        r"guidance_scale must be 1 for a network with conditioning=none, got 2; .* conditioning=label, .*\.",
    ),
    (
        ["run=TRAINED", "time_grid.rho=5"],
        r"time_grid\.rho is not a setting without a choice of time_grid; add time_grid=karras for time_grid\.rho\.",
    ),
    (["run=TRAINED", "weights=slow"], r"`weights` must be main or raw, got slow\."),
    (
        ["run=TRAINED", "metrics=fidd"],
        r"metrics must be one of bound, .*, got fidd; perhaps you mean fid\.",
    ),
    (
        ["run=TRAINED", "metrics=reconstruction", "sampler=ddim", "sampler.eta=0.5"],
        r"metrics\.reconstruction\.quantity: `sampler` must be ddim with eta=0 to encode images, got eta=0\.5\.",
    ),
    (
        ["run=TRAINED", "metrics=flow", "metrics.flow.split=nosuch"],
        r"metrics\.flow\.split must be a split of the run's data set \(train, held_out\), got nosuch\.",
    ),
    (["run=TRAINED", "metrics=sfid"], r"metrics\.sfid: `features` must have the output 'spatial' .*fashion_cnn.*"),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            r"`run` or `images` must be given: run=RUN measures .*, images=FOLDER the images in a folder or .*\.",
        ),
        (["run=/nowhere"], r"`run` must be a run folder, .* got /nowhere, which does not exist\."),
        (
            ["run=TRAINED", "checkpoint=best.ckpt"],
            r"`checkpoint` must be one of last\.ckpt.* in .*, got best\.ckpt \(best\.ckpt is saved by .*\)\.",
        ),
        (
            ["run=TRAINED", "metrics=[fid,nll]", "metrics.nll.split=test"],
            r"metrics\.bound\.split must be a split of the run's data set \(train, held_out\), got test\.",
        ),
        (["run=TRAINED", "reference=tset"], r"`reference` must be a split \(train, held_out\) or a .*, got tset\."),
        (["run=TRAINED", "num_samples=many"], r"num_samples must be a whole number of at least 1, got many\."),
        (
            ["run=TRAINED", "features=inception", "features.weights=no.pth"],
            r"features\.weights must be .*no\.pth.*",
        ),
        (
            ["run=TRAINED", "weights=raw", "trainer.compile=true"],
            r"trainer\.compile must be false for weights=raw \(because .* are copied for each batch\), got True\.",
        ),
        (
            ["run=TRAINED", "metrics=fd_fashion_cnn"],
            r"metrics must be one of bound, .*, got fd_fashion_cnn; use metrics=fid \(the .*",
        ),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_INVALID_SETTINGS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_setting_is_rejected_with_a_message(
    trained: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    overrides = [argument.replace("TRAINED", str(trained)) for argument in arguments]
    done = run("evaluate.py", *overrides, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_schedules_are_plotted_in_one_figure(tmp_path: Path) -> None:
    done = run("show_schedule.py", "schedule=linear,jsd,edm", "schedule.num_timesteps=20", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^linear .*num_timesteps=20.*alpha / sigma at t_max: 2\.11$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^jsd .*alpha / sigma at t_max: 0$", done.stdout, flags=re.MULTILINE)
    with Image.open(tmp_path / "schedules.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule=linear", "beside=[cosin]"], "beside must contain only .*, got cosin; perhaps you mean cosine.*"),
        (["num_times=0"], r"num_times must be a whole number of at least 1, got 0\."),
        (["image=first"], r"`image` must be in 0\.\.9999, got first\."),
        (["-m", "schedule=linear,cosine"], "show_schedule must be given without -m, because it shows everything.*"),
        (["image=10000"], r"`image` must be in 0\.\.9999, got 10000\."),
        (["schedule=custom", "schedule.betas=[0.5,2]"], r"schedule.betas must be in \[0, 1\], got 2 from .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_schedule_that_cannot_be_plotted_is_rejected(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("show_schedule.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip()), done.stderr


@pytest.mark.full
def test_runs_that_match_a_glob_pattern_make_one_table(trained: Path, tmp_path: Path) -> None:
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
    assert "peak memory" not in done.stdout
    line = r"^[ab], last\.ckpt, step 2: fd_fashion_cnn_20_train [\d.]+, kd_fashion_cnn_20_train \S+, cs_\S+ [\d.]+$"
    assert len(re.findall(line, done.stdout, re.MULTILINE)) == 2
    assert rows[0]["fd_fashion_cnn_20_train"] == rows[1]["fd_fashion_cnn_20_train"]  # the same network
    record = json.loads((tmp_path / "out" / "1_b" / "metrics.json").read_text())
    assert [number["name"] for number in record["numbers"]] == [
        "fd_fashion_cnn_20_train", "kd_fashion_cnn_20_train", "kd_std_fashion_cnn_20_train", "cs_fashion_cnn_20",
        "cs_std_fashion_cnn_20",
    ]  # fmt: skip
    assert record["step"] == 2
    assert set(record["seconds"]) == {"sampling", "features", "statistics"}


@pytest.mark.full
def test_numbers_against_a_file_of_statistics_are_named_after_the_file(trained: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "clothes.npz", mu=np.zeros(128), sigma=np.eye(128))
    settings = [f"run={trained}", "num_samples=20", "batch_size=20", "num_pictures=0"]
    done = run("evaluate.py", *settings, f"reference={tmp_path}/clothes.npz", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "fd_fashion_cnn_20_clothes" in numbers(tmp_path / "out")
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    done = run("evaluate.py", *settings, f"reference={tmp_path}/other.npz", f"hydra.run.dir={tmp_path / 'out2'}")
    assert done.stderr.strip().splitlines()[-1].endswith("must have 128 features (as fashion_cnn has), got 7.")


JOB = ["num_samples=25", "batch_size=10", "num_pictures=0"]
ON_TWO_RANKS = ["trainer=ddp", "trainer.accelerator=cpu"]
REJECTED = (
    "trainer.devices must be 2 (the number of ranks that torchrun started on this node, set by --nproc-per-node), "
    "got 1; set trainer=ddp."
)


def environment_of_torchrun(rank: int) -> dict[str, str]:
    """Return the variables that torchrun sets for one of two ranks on a single node, except the address of rank 0."""
    same = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    return {name: str(value) for name, value in same.items()} | {"TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(scope="module")
def distance_on_one_rank(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    folder = tmp_path_factory.mktemp("alone")
    alone = run("evaluate.py", f"run={trained}", *JOB, f"hydra.run.dir={folder}")
    assert alone.returncode == 0, alone.stderr
    return numbers(folder)["fd_fashion_cnn_25_train"]


def test_ranks_that_a_launcher_started_share_the_work(
    trained: Path, distance_on_one_rank: float, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    arguments = [f"run={trained}", *JOB, *ON_TWO_RANKS, f"hydra.run.dir={tmp_path / 'shared'}"]
    environments = [environment_of_torchrun(rank) | address for rank in (0, 1)]
    ranks = [start("evaluate.py", *arguments, **environment) for environment in environments]  # type: ignore[arg-type]
    for done in [rank.wait() for rank in ranks]:
        assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "shared")["fd_fashion_cnn_25_train"] == pytest.approx(distance_on_one_rank, rel=1e-9)


def test_ranks_that_would_each_do_all_the_work_are_rejected(trained: Path, tmp_path: Path) -> None:
    environment = environment_of_torchrun(0)
    done = run("evaluate.py", f"run={trained}", *JOB, f"hydra.run.dir={tmp_path}", **environment)  # type: ignore[arg-type]
    assert done.returncode == 1
    assert REJECTED in done.stderr


@pytest.mark.full
def test_torchrun_starts_ranks_that_share_the_work(trained: Path, distance_on_one_rank: float, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, str(ROOT / "src" / "evaluate.py"), f"run={trained}", *JOB]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, overrides in {"shared": ON_TWO_RANKS, "rejected": []}.items():
        arguments = [*overrides, f"hydra.run.dir={tmp_path / name}"]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (name == "shared"), done.stderr
    assert REJECTED in done.stderr
    assert numbers(tmp_path / "shared")["fd_fashion_cnn_25_train"] == pytest.approx(distance_on_one_rank, rel=1e-9)
