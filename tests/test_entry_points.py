"""The commands of the README, in processes of their own, on the embedded data."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion_lab.errors import UserError
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.pixels import to_uint8
from diffusion_lab.runs.load import load_module
from support.commands import SMALL, table, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of four steps, started from another folder, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    done = train(*SMALL, "conditioning=label", "guidance_scale=2", f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_config_metrics_checkpoints_and_pictures(run: tuple[Path, str]) -> None:
    folder, _ = run
    rows = table(folder / "metrics.csv")
    assert [float(row["fd_fashion_cnn_20_train"]) > 0 for row in rows if row["fd_fashion_cnn_20_train"]] == [True, True]
    assert any(row["loss"] for row in rows)
    assert any(row["images_per_second"] for row in rows)
    rates = [float(row["learning_rate"]) for row in rows if row["learning_rate"]]
    assert rates == pytest.approx([0.0005 * 2 / 100, 0.0005 * 4 / 100])  # two and four steps into the warm-up
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    with Image.open(folder / "samples" / "step_0000004.png") as grid:
        assert grid.size == (4 * (2 * 28 + 2) + 2, 2 * 28 + 4)  # four images, enlarged twice
    assert "${" not in (folder / "config.yaml").read_text()


def test_a_checkpoint_is_plain_enough_to_load_safely(run: tuple[Path, str]) -> None:
    state = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert int(state["state_dict"]["ema._extra_state"]) == 4


def test_a_run_ends_with_a_short_summary(run: tuple[Path, str]) -> None:
    folder, said = run
    assert re.search(r"done: 4 steps in \d+\.\d minutes, [\d,]+ images/s while training", said)
    assert re.search(r"distance    fd_fashion_cnn_20_train: \d+\.\d\d at step 2, \d+\.\d\d at step 4", said)
    assert f"{folder.name}/samples/step_0000004.png" in said
    assert len(re.findall(r"^  python src/train.py ", said, flags=re.MULTILINE)) == 2
    content = json.loads((folder / "summary.json").read_text())
    assert content["steps"] == 4


def test_the_commands_that_a_run_suggests_can_be_composed(run: tuple[Path, str]) -> None:
    for command in re.findall(r"^  python src/train.py (.*)$", run[1], flags=re.MULTILINE):
        words = [word.partition(",")[0] for word in command.split() if word != "-m"]
        assert train(*words, "--cfg", "job").returncode == 0


def test_the_same_run_again_gives_the_same_weights(run: tuple[Path, str], tmp_path: Path) -> None:
    again = train(*SMALL, "conditioning=label", "guidance_scale=2", f"hydra.run.dir={tmp_path}")
    assert again.returncode == 0, again.stderr
    one, other = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (run[0], tmp_path))
    assert all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items())


def test_a_sweep_gives_each_run_its_folder_and_ends_with_a_table(tmp_path: Path) -> None:
    done = train("-m", *SMALL, "schedule=linear,cosine", "prediction=epsilon,v", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == [
        "schedule-cosine_prediction-epsilon",
        "schedule-cosine_prediction-v",
        "schedule-linear_prediction-epsilon",
        "schedule-linear_prediction-v",
    ]
    assert all((tmp_path / folder / "metrics.csv").is_file() for folder in folders)
    assert re.search(r"schedule .* prediction .* fd_fashion_cnn_20_train", done.stdout)
    rows = table(tmp_path / "sweep.csv")
    assert [row["schedule"] for row in rows] == ["cosine", "cosine", "linear", "linear"]
    assert len({row["fd_fashion_cnn_20_train"] for row in rows}) == 4

    before = {folder: (tmp_path / folder / "status.json").read_text() for folder in folders}
    (tmp_path / folders[2] / "status.json").unlink()
    words = ["schedule=linear,cosine,quadratic", "prediction=epsilon,v", f"hydra.sweep.dir={tmp_path}"]
    again = train("-m", *SMALL, *words)
    assert again.returncode == 0, again.stderr
    assert "6 runs in" in again.stdout
    assert [again.stdout.count(f" {word} ") for word in ("is there", "starts")] == [3, 3]
    after = {folder: (tmp_path / folder / "status.json").read_text() for folder in folders}
    assert [folder for folder in folders if after[folder] != before[folder]] == [folders[2]]
    assert table(tmp_path / "sweep.csv")[:2] == rows[:2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.devices=2"], "hydra/launcher=local_parallel, which give each run its own processes, or trainer.dev"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.partitoin=x"],
            "is not a setting in hydra.launcher: accepted are acc",
        ),
        (
            ["hydra/launcher=slurm", "hydra.launcher.time=soon"],
            "hydra.launcher.time must be minutes, or as 12:00:00 or 2-00:00:00, got soon.",
        ),
        (["hydra/launcher=slurm", "hydra.launcher.more=3"], "more must be options: {exclude: n7}, got 3."),
        (["hydra/launcher=local_parallel", "hydra.launcher.num_at_once=0"], "number of at least 1, got 0."),
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.num_trials=0"],
            "num_trials must be a whole number of at least 1, got",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = train("-m", *SMALL, "seed=1,2", *words, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/config.yaml"))


def test_a_command_given_again_in_its_folder_goes_on_and_another_is_refused(run: tuple[Path, str]) -> None:
    words = [*SMALL, "conditioning=label", "guidance_scale=2", f"hydra.run.dir={run[0]}"]
    done = train(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"nothing left to do: {run[0]} has done its 4 steps")
    other = train(*words, "optimizer.lr=0.5")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1] == (
        f"error: hydra.run.dir must be a folder of its own for each run, but {run[0]} holds one from which these "
        "differ: optimizer.lr (was 0.0005, got 0.5)."
    )
    assert (run[0] / "summary.json").is_file()
    assert json.loads((run[0] / "status.json").read_text())["state"] == "finished"  # the run that is there is


def test_a_sweep_goes_on_after_a_run_that_is_refused(tmp_path: Path) -> None:
    done = train("-m", *SMALL, "model.channels=30,8", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of the sweep's 2 runs failed; the same command runs what is missing. model.chan")
    assert "model.channels-30: model: num_groups must divide" in last
    rows = table(tmp_path / "sweep.csv")
    assert [(row["model.channels"], row["state"], row["step"]) for row in rows] == [
        ("8", "finished", "4"), ("30", "failed", ""),
    ]  # fmt: skip
    assert (tmp_path / "model.channels-8" / "summary.json").is_file()


def test_the_quick_start_can_be_cut_short(tmp_path: Path) -> None:
    done = train("experiment=quickstart", "trainer.max_steps=2", "sampler.num_steps=3", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "samples" / "step_0000002.png") as grid:
        assert grid.size == (10 * 58 + 2, 8 * 58 + 2)  # eighty clothes, one class a column


def test_a_run_shorter_than_the_logging_interval_leaves_its_numbers(tmp_path: Path) -> None:
    off = ["callbacks.sample_images=null", "callbacks.measure_distance=null", "trainer.log_every_n_steps=50"]
    done = train(*SMALL[:4], *off, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in table(tmp_path / "metrics.csv") if row["loss"]]
    assert row["step"] == "4"
    assert float(row["images_per_second"]) > 0


def test_wandb_works_offline_and_metrics_csv_is_there_too(tmp_path: Path) -> None:
    done = train(*SMALL, "logger=wandb", "logger.wandb.offline=true", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "metrics.csv").is_file()


def test_wandb_without_a_key_is_said_in_one_sentence(tmp_path: Path) -> None:
    nobody: dict[str, Any] = {
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_API_KEY": "",
        "WANDB_MODE": "online",
    }
    done = train(*SMALL, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}", **nobody)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: logger.wandb: No API key configured.")
    assert last.endswith("logger.wandb.offline=true needs no account.")


def test_tensorboard_receives_numbers_and_pictures(tmp_path: Path) -> None:
    done = train(*SMALL, "logger=tensorboard", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    content = events.read_bytes()
    assert b"samples" in content
    assert b"fd_fashion_cnn_20_train" in content


def test_a_missing_feature_network_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    done = train(*SMALL, "features=inception", "features.weights=/nowhere/inception.pth", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this run goes on without callbacks.measure_distance") == 1
    assert done.stderr.index("this run goes on") < done.stderr.index("step 1/4")
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["schedule=cosin"],
            "schedule must be one of beta_warmup, constant, cosine, .*, got cosin; perhaps you mean cosine.",
        ),
        (["shedule=cosine"], "shedule is not a setting: accepted are .*; perhaps you mean schedule."),
        (
            ["model.chanels=3"],
            "model.chanels is not a setting in model: accepted are .*channels.*perhaps you mean channels.",
        ),
        (["model.dropout=0.1"], "model.dropout is not a setting in model: .*; perhaps you mean model.blocks.dropout."),
        (["num_steps=9"], "num_steps is not a setting: accepted are .*; perhaps you mean sampler.num_steps."),
        (["guidance_scale=much"], "guidance.guidance_scale must be a number, got much; .*"),
        (
            ["classifier=missing"],
            "classifier must be the folder of a run, got missing: missing/.* is missing.",
        ),
        (["+model.chanels=3"], "model.chanels is not a setting of UNet: accepted are .*; perhaps you mean channels."),
        (["data=cifar10"], "data.hub_name=uoft-cs/cifar10 is neither in .* nor within reach .* set data.path to .*"),
        (["data=cifar10", "data.path=EMPTY"], r"data.path must hold .*train-\*.parquet.*EMPTY is empty."),
        (["data.resolution=30"], "model: resolution must be divisible by 4 .* got 30; try data.resolution=32 .*"),
        (["data.resolution=abc"], "data.store.resolution must be a whole number, got abc.*"),
        (["trainer.max_steps=abc"], "trainer.max_steps must be a whole number, got abc."),
        (["sampler.num_steps=2000"], "sampler: num_steps must be at most the schedule's 1000 steps, got 2000."),
        (
            ["schedule=scaled_linear"],
            r"schedule must be one of .*, got scaled_linear; elsewhere that is what is here schedule=quadratic \(.*",
        ),
        (
            ["data.batch_size=10", "trainer.accumulate_grad_batches=3"],
            r"data.batch_size is the global batch and must be divisible by processes \* .*, 1 \* 3, got 10.",
        ),
        (["schedule=custom"], "schedule.betas must be given, got nothing."),
        (
            ["schedule=custom", "schedule.betas=[0.1,0.5,1.5]"],
            r"schedule: betas must be in \[0, 1\], got 1.5; CustomSchedule gives it.",
        ),
        (
            ["variance=learned_range", "model.out_channels=1"],
            "model.out_channels must be 2 for a learned variance, twice the 1 of the image, got 1; or take .*",
        ),
        (
            ["objective=vlb", "schedule=rectified_flow"],
            "objective=vlb and hybrid need a schedule of steps .* got the continuous RectifiedFlowSchedule.",
        ),
        (
            ["objective=hybrid", "variance=fixed_small"],
            "objective: variance must be learned_range or learned_diagonal for objective=hybrid, .* got FixedSmall.",
        ),
        (
            ["schedule.zero_terminal_snr=true"],
            "prediction must be x_0 or v for LinearSchedule, whose last alpha is 0 .*, got epsilon.",
        ),
        (["schedule=jsd", "prediction=epsilon"], "prediction must be x_0 or v for JSDSchedule, .*, got epsilon."),
        (["schedule=vp", "prediction=posterior_mean"], "schedule must be a table of steps .* continuous VPSchedule."),
        (["schedule.num_timesteps=0"], "schedule: num_timesteps must be a whole number of at least 1, got 0."),
        (["seed=-1"], r"seed must be a whole number in 0..2\^63 - 1, got -1."),
        (["data.classes=Sneaker"], "data.store.classes must be a list or null, got Sneaker."),
        (["conditioning=label", "data.num_classes=9"], "data.num_classes must be above the largest label, 9, got 9."),
        (
            ["trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2"],
            "trainer.compile must be true, false or max-autotune-no-cudagraphs where batches are accumulated, since "
            "CUDA graphs overwrite gradients that are added up, got reduce-overhead.",
        ),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be at least 0, got -1."),
        (
            ["augmentation=edm", "model.num_augmentation_channels=0"],
            "model.num_augmentation_channels must be 9, or the network would draw what the augmentation did, got 0.",
        ),
        (["optimizer.betas=[2,3]"], r"optimizer: betas must be two numbers in \[0, 1\), got \[2, 3\]."),
        (["guidance_scale=2"], "guidance_scale=2: guidance needs a network that was trained with dropped labels .*"),
        (["schedule"], "Error parsing override 'schedule' missing EQUAL .*"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_before_anything_is_trained(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "EMPTY").mkdir()
    done = train(*arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {sentence}", done.stderr.strip()), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_an_augmented_run_trains_and_gives_back_its_network(tmp_path: Path) -> None:
    changes = ["augmentation=edm", "augmentation.probability=0.5", "trainer=debug", "trainer.max_steps=2"]
    done = train(*SMALL, *changes, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    network = load_module(tmp_path).network
    assert network.num_augmentation_channels == 9


def test_a_schedule_that_does_not_end_in_noise_is_warned_of(tmp_path: Path) -> None:
    done = train(*SMALL, "schedule.num_timesteps=50", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    # alpha_bar of 50 steps of mean variance 0.01 is 0.60
    assert "warning: schedule does not end in noise: x_T keeps alpha / sigma = 1.2 of the image" in done.stderr


def test_help_names_every_group_and_does_not_wait_for_torch() -> None:
    started = time.monotonic()
    done = train("--help")
    assert done.returncode == 0
    assert "schedule: constant, cosine, " in done.stdout
    assert time.monotonic() - started < 20  # seconds less without torch; the bound only catches a hang


def test_a_run_folder_gives_back_its_module(run: tuple[Path, str]) -> None:
    module = load_module(run[0])
    images = module.sample(range(4), guidance=Guidance(Strength(2)))
    with Image.open(run[0] / "samples" / "step_0000004.png") as grid:
        shown = torch.tensor(list(grid.convert("L").tobytes())).view(60, -1)[2:58:2, 2:58:2]
    # The run sampled in bfloat16 where the processor has it, this module samples in float32.
    assert (to_uint8(images)[0, 0].int() - shown).abs().float().mean() < 4


def test_a_folder_without_a_run_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run must be the folder of a run, got .*: config\.yaml is missing\."):
        load_module(tmp_path)
