"""The commands of the README on the embedded data, in separate processes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion_lab.errors import UserError
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.pixels import to_uint8
from diffusion_lab.runs.load import load_module
from support.commands import ROOT, SMALL, TINY, table, train

GUIDED = [*SMALL, "conditioning=label", "guidance_scale=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of four steps, started from another folder, and its standard output."""
    folder = tmp_path_factory.mktemp("run")
    done = train(*GUIDED, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def repeated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with TensorBoard."""
    folder = tmp_path_factory.mktemp("repeated")
    done = train(*GUIDED, "logger=tensorboard", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two steps on fifty levels of noise with trainer=debug, an augmentation and no features, and standard error."""
    folder = tmp_path_factory.mktemp("debug")
    done = train(
        *SMALL, "trainer=debug", "trainer.max_steps=2", "trainer.log_every_n_steps=50", "schedule.num_timesteps=50",
        "augmentation=edm", "augmentation.probability=0.5", "features=inception",
        "features.weights=/nowhere/inception.pth", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_run_writes_config_metrics_checkpoints_and_samples(run: tuple[Path, str]) -> None:
    folder, _ = run
    rows = table(folder / "metrics.csv")
    assert [float(row["fd_fashion_cnn_20_train"]) > 0 for row in rows if row["fd_fashion_cnn_20_train"]] == [True, True]
    assert any(row["loss"] for row in rows)
    assert any(row["images_per_second"] for row in rows)
    rates = [float(row["learning_rate"]) for row in rows if row["learning_rate"]]
    assert rates == pytest.approx([0.0005 * 2 / 100, 0.0005 * 4 / 100])  # after two and four steps of warm-up
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    with Image.open(folder / "samples" / "step_0000004.png") as grid:
        assert grid.size == (4 * (2 * 28 + 2) + 2, 2 * 28 + 4)  # four images, upsampled by 2
    assert "${" not in (folder / "config.yaml").read_text()


def test_a_checkpoint_loads_with_weights_only(run: tuple[Path, str]) -> None:
    state = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert int(state["state_dict"]["ema._extra_state"]) == 4


def test_a_run_ends_with_a_short_summary(run: tuple[Path, str]) -> None:
    folder, stdout = run
    assert re.search(r"done: 4 steps in \d+:\d\d:\d\d, [\d,]+ images/s while training", stdout)
    assert re.search(r"distance    fd_fashion_cnn_20_train: \d+\.\d\d at step 2, \d+\.\d\d at step 4", stdout)
    assert f"  curves      {folder}/curves.png\n" in stdout
    assert (folder / "curves.png").is_file()
    assert f"{folder.name}/samples/step_0000004.png" in stdout
    assert "(Fréchet distance of the features; lower is better)" in stdout
    _, _, following = stdout.partition("next:\n")
    path = re.search(r"run=(\S+) num_images=64", following)[1]  # type: ignore[index]
    assert following.splitlines() == [  # with the paths of the scripts, because the working directory is another one
        f"  python {ROOT}/src/sample.py run={path} num_images=64",
        f"  python {ROOT}/src/evaluate.py run={path} num_samples=20",
        f"  python {ROOT}/src/train.py resume={path} trainer.max_steps=8",
    ]
    assert path.endswith(folder.name)
    content = json.loads((folder / "summary.json").read_text())
    assert content["steps"] == 4


def test_training_is_reproducible(run: tuple[Path, str], repeated_run: Path) -> None:
    one, other = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (run[0], repeated_run))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items())


def test_tensorboard_receives_numbers_and_pictures(repeated_run: Path) -> None:
    (events,) = (repeated_run / "tensorboard").glob("events.*")
    content = events.read_bytes()
    assert b"samples" in content
    assert b"fd_fashion_cnn_20_train" in content


def test_a_sweep_gives_each_run_its_folder_and_ends_with_a_table(tmp_path: Path) -> None:
    small = [*SMALL, "trainer.max_steps=2"]
    done = train("-m", *small, "schedule=linear,cosine", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["schedule-cosine", "schedule-linear"]
    assert all((tmp_path / folder / "metrics.csv").is_file() for folder in folders)
    assert re.search(r"schedule .* fd_fashion_cnn_20_train", done.stdout)
    files = "sweep.csv, sweep.md, against_schedule.png, contact_sheet.png"
    assert done.stdout.splitlines()[-1] == f"results are in {tmp_path}: {files}"
    assert re.findall(r"^run .*", done.stdout, re.MULTILINE) == [
        "run 1 of 2: schedule-linear", "run 2 of 2: schedule-cosine",
    ]  # fmt: skip
    assert "HYDRA" not in done.stdout + done.stderr
    rows = table(tmp_path / "sweep.csv")
    assert [row["schedule"] for row in rows] == ["linear", "cosine"]  # the typed order
    assert len({row["fd_fashion_cnn_20_train"] for row in rows}) == 2

    before = {folder: (tmp_path / folder / "status.json").read_text() for folder in folders}
    (tmp_path / "schedule-linear" / "status.json").unlink()
    again = train("-m", *small, "schedule=linear,cosine,quadratic", f"hydra.sweep.dir={tmp_path}")
    assert again.returncode == 0, again.stderr
    assert "3 runs in" in again.stdout
    assert [again.stdout.count(f" {word} ") for word in ("skip (finished)", "start")] == [1, 2]
    after = {folder: (tmp_path / folder / "status.json").read_text() for folder in folders}
    assert [folder for folder in folders if after[folder] != before[folder]] == ["schedule-linear"]
    assert table(tmp_path / "sweep.csv")[1] == rows[1]


OTHER_INVALID_SWEEPS: list[tuple[list[str], str]] = [
    (
        ["hydra/launcher=slurm", "hydra.launcher.partitoin=x"],
        "is not a setting in hydra.launcher; perhaps you mean partition; accepted settings are acc",
    ),
    (["hydra/launcher=slurm", "hydra.launcher.more={exclude: [n7]}"], "more.exclude must be a text, a number, true"),
    (["hydra/launcher=slurm", "hydra.launcher.more=3"], "options of sbatch such as {exclude: n7}, got 3."),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hydra.launcher.num_at_once=4"],
            "add hydra/launcher=local_parallel or slurm for hydra.launcher.num_at_once.",
        ),
        (["trainer.devices=2"], "hydra/launcher=local_parallel, which start separate processes for each run, or"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.time=soon"],
            "hydra.launcher.time must be a number of minutes, or a time like 12:00:00 or 2-00:00:00, got soon.",
        ),
        (["hydra/launcher=local_parallel", "hydra.launcher.num_at_once=0"], "number of at least 1, got 0."),
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.num_trials=0"],
            "num_trials must be a whole number of at least 1, got",
        ),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_INVALID_SWEEPS),
    ],
)
def test_an_invalid_sweep_is_rejected_with_a_message(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = train("-m", *SMALL, "seed=1,2", *overrides, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/config.yaml"))


def test_the_same_command_in_a_run_folder_resumes_and_another_command_is_rejected(run: tuple[Path, str]) -> None:
    overrides = [*GUIDED, f"hydra.run.dir={run[0]}"]
    done = train(*overrides)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"nothing left to do: all 4 steps of {run[0]} are complete")
    other = train(*overrides, "optimizer.lr=0.5")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1] == (
        f"error: hydra.run.dir must be a separate folder for each run, but {run[0]} belongs to a run with other "
        "settings: optimizer.lr (was 0.0005, got 0.5)."
    )
    assert (run[0] / "summary.json").is_file()
    assert json.loads((run[0] / "status.json").read_text())["state"] == "finished"  # unchanged


def test_a_sweep_continues_after_a_rejected_run(tmp_path: Path) -> None:
    done = train("-m", *TINY, "model.channels=30,8", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of the sweep's 2 runs failed; run the same command again to resume them. model.ch")
    assert "model.channels-30: model: num_groups must divide" in last
    rows = table(tmp_path / "sweep.csv")
    assert [(row["model.channels"], row["state"], row["step"]) for row in rows] == [
        ("30", "failed", ""), ("8", "finished", "2"),
    ]  # fmt: skip
    assert (tmp_path / "model.channels-8" / "summary.json").is_file()


def test_the_quick_start_can_be_shortened(tmp_path: Path) -> None:
    shorter = ["trainer.max_steps=2", "sampler.num_steps=3", "num_samples=20"]
    smaller = ["model.channels=8", "data.batch_size=8", "data.max_images=500"]
    done = train("experiment=quickstart", *shorter, *smaller, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "samples" / "step_0000002.png") as grid:
        assert grid.size == (10 * 58 + 2, 8 * 58 + 2)  # 80 images, one class in each column


def test_a_run_of_more_than_twenty_steps_prints_its_cost_before_its_first_step(tmp_path: Path) -> None:
    few = [override for override in TINY if "max_steps" not in override]
    done = train(*few, "data.max_images=500", "trainer.max_steps=21", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    number = sum(weight.numel() for weight in load_module(tmp_path).network.parameters())
    line = rf"cost: {number:,} parameters, about 0\.\d GB of memory, about \d+ seconds \([\d.]+ s per step\)"
    assert re.search(f"^{line}$", done.stdout, re.MULTILINE), done.stdout
    assert "step 1/21" in done.stderr


def test_a_run_shorter_than_the_logging_interval_logs_its_metrics(debug_run: tuple[Path, str]) -> None:
    (row,) = [row for row in table(debug_run[0] / "metrics.csv") if row["loss"]]
    assert row["step"] == "2"
    assert float(row["images_per_second"]) > 0


def test_wandb_without_an_api_key_is_rejected_with_a_message(tmp_path: Path) -> None:
    no_login: dict[str, Any] = {
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_API_KEY": "",
        "WANDB_MODE": "online",
    }
    done = train(*SMALL, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}", **no_login)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: logger.wandb: No API key configured.")
    assert last.endswith("(logger.wandb.offline=true needs no account).")


def test_a_missing_feature_network_is_noted_once_and_training_continues(debug_run: tuple[Path, str]) -> None:
    folder, stderr = debug_run
    assert stderr.count("note: this run continues without callbacks.measure_distance") == 1
    assert stderr.index("this run continues") < stderr.index("step 1/2")
    assert (folder / "checkpoints" / "last.ckpt").is_file()


OTHER_INVALID_SETTINGS: list[tuple[list[str], str]] = [
    (
        ["model.dropout=0.1"],
        "model.dropout is not a setting in model; perhaps you mean model.blocks.dropout; accepted .*",
    ),
    (["classes=cats"], "classes is not a setting; perhaps you mean data.classes; accepted .*"),
    (["steps=9"], "steps is not a setting; perhaps you mean trainer.max_steps; accepted .*"),
    (["Learning_Rate=9"], "Learning_Rate is not a setting; perhaps you mean optimizer.lr; accepted .*"),
    (["sampler=DDIM"], "sampler must be one of ancestral, .*, got DDIM; perhaps you mean ddim."),
    (["num_steps=9"], "num_steps is not a setting; perhaps you mean sampler.num_steps; accepted .*"),
    (["data.resolution=64x64"], "data.resolution must be a whole number, got 64x64."),
    (["trainer.max_steps=abc"], "trainer.max_steps must be a whole number of at least 1, got abc."),
    (
        ["schedule=scaled_linear"],
        r"schedule must be one of .*, got scaled_linear; use schedule=quadratic \(.*",
    ),
    (
        ["schedule=custom", "schedule.betas=[0.1,0.5,1.5]"],
        r"schedule.betas must be in \[0, 1\], got 1.5 from CustomSchedule.",
    ),
    (
        ["objective=vlb", "schedule=rectified_flow"],
        "`schedule` must have discrete steps .* got the continuous RectifiedFlowSchedule.",
    ),
    (
        ["schedule=jsd", "prediction=epsilon"],
        "`prediction` must determine x_0 at .* JSDSchedule, .* got epsilon; .*",
    ),
    (["schedule=vp", "prediction=posterior_mean"], "`schedule` must have discrete steps .* continuous VPSchedule."),
    (["schedule.num_timesteps=0"], "schedule.num_timesteps must be a whole number of at least 1, got 0."),
    (["data.classes=2.5"], "data.classes must be a list or a string or a whole number or null, got 2.5."),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be at least 0, got -1."),
    (
        ["augmentation=edm", "model._target_=torch.nn.Linear"],
        "`augmentation` must be none for Linear, which has no setting num_augmentation_channels, got EDMAugmentation.",
    ),
    (["optimizer.betas=[2,3]"], r"optimizer.betas must be two numbers in \[0, 1\), got \[2, 3\]."),
    (
        ["schedule=[linear,edm]"],
        r"schedule must be one choice, got \[linear,edm\]; a sweep .* is -m schedule=linear,edm.",
    ),
    (["seed=1,2"], r"seed must be one value, a list \(\[1,2\]\) or, with -m, the values of a sweep, got 1,2."),
    (["schedule=1"], "schedule must be one of .*, got 1; --config-dir FOLDER .*"),
    (["seed=${x"], r"seed must be a value, or \${NAME} for the value of another setting, got \"\${x\"."),
    (["metrics=[fid,kidd]"], "metrics must be one of bound, .*, got kidd; perhaps you mean kid."),
    (["schedule.num_timesteps="], "schedule.num_timesteps must be a whole number, got an empty value."),
    (["data.hub_name=NAME"], "data.hub_name must not be given for data=fashion_mini, .*"),
    (["trainer.accelerator=tpu"], "trainer: Requirement 'torch_xla.*"),
    (["fork=true"], "`resume` must be given with fork=true, because a fork starts from the state of a run."),
    (["model.channel_multipliers=2"], "model.channel_multipliers must have a value from which .*, got 2."),
    (["optimizer.lr=1,000"], r"optimizer.lr must be one value, a list \(\[1,000\]\) or, with -m, .*, got 1,000."),
    (["seed=null"], r"seed must be a whole number in 0..2\^63 - 1, got null."),
    (["seed="], r"seed must be a whole number in 0..2\^63 - 1, got an empty value."),
    (["seed=1", "++data.fit"], r"settings are given as NAME=VALUE, got \+\+data.fit."),
    (["data.channels=null"], "data.channels must be a whole number, got null."),
    (["conditioning=label", "data.num_classes=9"], r"data.num_classes must be above the .* \(9\), got 9."),
    (["schedule=custom"], "schedule.betas must be given, got no value."),
    (["guidance_scale=2"], "guidance_scale must be 1 for a network with conditioning=none, got 2; .*"),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["schedule=cosin"],
            "schedule must be one of beta_warmup, constant, cosine, .*, got cosin; perhaps you mean cosine.",
        ),
        (["shedule=cosine"], "shedule is not a setting; perhaps you mean schedule; accepted .*"),
        (
            ["model.chanels=3"],
            "model.chanels is not a setting in model; perhaps you mean channels; accepted .*",
        ),
        (["max_steps=9"], "max_steps is not a setting; perhaps you mean trainer.max_steps; accepted .*"),
        (["guidance_scale=much"], "guidance_scale must be a number, got much."),
        (
            ["classifier=missing"],
            "`classifier` must be a run folder, .* got missing, which does not exist in .*",
        ),
        (["+model.chanels=3"], "model.chanels is not a setting of UNet; perhaps you mean channels; accepted .*"),
        (["data=cifar10"], "data.hub_name=uoft-cs/cifar10 is not in .* cannot be reached; .* set data.path to .*"),
        (["data=cifar10", "data.path=EMPTY"], r"data.path must contain .*train-\*.parquet.*EMPTY is empty."),
        (
            ["data.resolution=30"],
            "data.resolution must be divisible by 4 .* got 30; try data.resolution=32 or fewer channel_multipliers.",
        ),
        (["sampler.num_steps=2000"], "sampler.num_steps must be at most the schedule's 1000 steps, got 2000."),
        (
            ["data.batch_size=10", "trainer.accumulate_grad_batches=3"],
            r"data.batch_size \(the global batch size\) must be divisible by the world size .* \(1 \* 3\), got 10.",
        ),
        (
            ["variance=learned_range", "model.out_channels=1"],
            "`out_channels` of the network must be 2 for a learned variance .twice the 1 channels .*, got 1; .*",
        ),
        (
            ["objective=hybrid", "variance=fixed_small"],
            "objective: `variance` must be LearnedRange or LearnedDiagonal for the objective Hybrid, .* "
            "got the fixed variance FixedSmall .use variance=learned_range with objective=hybrid..",
        ),
        (
            ["schedule.zero_terminal_snr=true"],
            "`prediction` must determine x_0 at .* LinearSchedule, whose last alpha is 0 .*, got epsilon; .*",
        ),
        (["seed=-1"], r"seed must be a whole number in 0..2\^63 - 1, got -1."),
        (
            ["data.classes=Sneker"],
            r"data.classes must be among .*, got Sneker; perhaps you mean data.classes=\[Sneaker\]; .*",
        ),
        (
            ["trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2"],
            "trainer.compile must be true, false or max-autotune-no-cudagraphs with "
            r"trainer.accumulate_grad_batches above 1 \(because CUDA graphs overwrite accumulated gradients\), got "
            "reduce-overhead.",
        ),
        (
            ["augmentation=edm", "model.num_augmentation_channels=0"],
            r"model.num_augmentation_channels must be 9 \(the number of values that .* to the network\), got 0.",
        ),
        (["experiment=mine"], "experiment must be one of .*, got mine; --config-dir FOLDER adds .* your own folder."),
        (["schedule"], "settings are given as NAME=VALUE: schedule=VALUE, got schedule."),
        (["schedule=linear,edm"], "schedule must be one choice or, with -m, the values of a sweep, got linear,edm."),
        (
            ["schedule=cosine", "schedule.beta_end=0.1"],
            "schedule.beta_end is not a setting .*; add schedule=beta_warmup or linear or .* for schedule.beta_end; .*",
        ),
        (["seed=${nothing}"], r"seed refers to \${nothing}, which is not a setting."),
        (["data=class_folders", "conditioning=label"], "data.path must name a folder of images .*, got null."),
        (["data.path=EMPTY"], "data.path must not be given for data=fashion_mini, .*; data=class_folders .*"),
        (["data.num_held_out=10000"], r"data.num_held_out must be below .* \(10000\), .*; data.num_held_out=0 .*"),
        (["inpaint=true"], "inpaint is not a setting; use `python .*src/edit.py run=RUN task=inpaint`."),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_INVALID_SETTINGS),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_invalid_setting_is_rejected_with_a_message_before_training(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "EMPTY").mkdir()
    done = train(*arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    without_notes = re.sub(
        r"^note: .* (is|are) used.*\n|^note: waiting .*\n", "", done.stderr
    )  # of preparing the images
    assert re.fullmatch(f"error: {message}", without_notes.strip()), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_run_with_augmentation_trains_and_its_network_loads(debug_run: tuple[Path, str]) -> None:
    assert load_module(debug_run[0]).network.num_augmentation_channels == 9


def test_a_schedule_that_does_not_end_in_noise_logs_a_warning(debug_run: tuple[Path, str]) -> None:
    # alpha_bar of 50 steps of mean variance 0.01 is 0.60
    assert "warning: schedule does not end in noise: alpha / sigma of x_T is 1.2, but" in debug_run[1]


def test_a_module_loads_from_its_run_folder(run: tuple[Path, str]) -> None:
    module = load_module(run[0])
    images = module.sample(range(4), guidance=Guidance(Strength(2)))
    with Image.open(run[0] / "samples" / "step_0000004.png") as grid:
        saved = torch.tensor(list(grid.convert("L").tobytes())).view(60, -1)[2:58:2, 2:58:2]
    # The run samples in bfloat16 if the processor supports it, this module in float32.
    assert (to_uint8(images)[0, 0].int() - saved).abs().float().mean() < 4


def test_a_folder_without_a_run_is_rejected_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`run` must be a run folder, .*, which has no config\.yaml\."):
        load_module(tmp_path)
