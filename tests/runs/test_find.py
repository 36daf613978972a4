"""The rule by which every setting names a run: each setting takes each form, from any folder."""

import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from diffusion_lab.commands import sweep
from diffusion_lab.commands.compare import compare
from diffusion_lab.commands.reconstruct_ema import reconstruct_ema
from diffusion_lab.config.overrides import unquote
from diffusion_lab.errors import UserError
from diffusion_lab.paths import logs_folder
from diffusion_lab.runs import load_module, status
from diffusion_lab.runs.find import (
    MEASURED,
    SWEEP,
    find_place,
    find_run,
    find_targets,
    portable_path,
    run_of,
    shell_word,
    with_found_guides,
)
from diffusion_lab.runs.resume import restore_command_line
from diffusion_lab.runs.setup.cascade import cascade_stages
from diffusion_lab.runs.setup.guidance import guidance
from support.commands import table

CLASSIFIER = "{model: none, data: none, schedule: linear, optimizer: adam}"
DIFFUSION = (
    "{model: none, data: none, schedule: linear, optimizer: adam, objective: simple, sampler: ddim, "
    "ema: {decays: {main: {_target_: diffusion_lab.ema.RampedDecay}}}}"
)


def make_run(folder: Path, config: str = DIFFUSION) -> Path:
    """Create a run folder with two checkpoints and a result."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "status.json").write_text("{}")
    (folder / "summary.json").write_text('{"loss": 0.5}')
    for name in ("last.ckpt", "step_0000001.ckpt"):
        (folder / "checkpoints" / name).touch()
    return folder


def named_by_resume(value: str) -> str:
    sys.argv = ["train.py", f"resume='{value}'"]
    restore_command_line("train")
    return unquote(sys.argv[-2].removeprefix("hydra.run.dir="))


def named_in_error(call: Callable[[str], object], start: str, end: str) -> Callable[[str], str]:
    """Function that returns the run folder in the error message of a setting, between the words `start` and `end`."""

    def name(value: str) -> str:
        with pytest.raises(UserError) as error:
            call(value)
        return str(error.value).partition(start)[2].partition(end)[0]

    return name


def reconstruct(value: str) -> object:
    return reconstruct_ema(OmegaConf.create({"run": value, "length": 0.1, "step": None}))


def named_by_sweep(value: str) -> str:
    sys.argv = ["sweep.py", "status", value]
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as printed:
        sweep.main()
    return printed.getvalue().splitlines()[-1].removeprefix("results are in ").partition(": ")[0]


def named_by_numbers(value: str) -> str:
    """Path of the folder whose name is in the table."""
    with redirect_stdout(io.StringIO()):
        compare(OmegaConf.create({"numbers": [value], "allow": [], "output_folder": "."}))
    (row,) = table(Path("numbers.csv"))
    return str(logs_folder() / "evaluate" / row["run"])


@dataclass(frozen=True)
class Setting:
    """A setting that names a run.

    folder: function that returns the run folder that a value of the setting names.
    command: command of the runs that the setting names.  config: config of these runs.
    is_sweep: whether the setting names sweeps.
    """

    folder: Callable[[str], str]
    command: str = "train"
    config: str = DIFFUSION
    is_sweep: bool = False


SETTINGS = {
    "run": Setting(
        lambda value: str(find_targets(OmegaConf.create({"run": value, "checkpoint": "last.ckpt"}))[0].folder)
    ),
    "run, in a list": Setting(
        lambda value: str(find_targets(OmegaConf.create({"run": [value], "checkpoint": "last.ckpt"}))[0].folder)
    ),
    "run of reconstruct_ema": Setting(named_in_error(reconstruct, "got ", " (ema.")),
    "resume": Setting(named_by_resume),
    "guide": Setting(
        named_in_error(lambda value: guidance(guidance_scale=2, guide=value), "got ", ", which "), config=CLASSIFIER
    ),
    "classifier": Setting(
        named_in_error(lambda value: guidance(classifier=value), "got ", ", which "), "train_classifier"
    ),
    "cascade": Setting(lambda value: str(cascade_stages(OmegaConf.create({"cascade": [value]}))[0].folder)),
    "numbers": Setting(named_by_numbers, "evaluate"),
    "folder of sweep status": Setting(named_by_sweep, is_sweep=True),
    "load_module": Setting(named_in_error(lambda value: load_module(value, "none.ckpt"), " in ", "/checkpoints, got")),
}
FORMS = {
    "absolute path": "{logs}/{command}/{run}",
    "trailing slash": "{logs}/{command}/{run}/",
    "checkpoint file": "{logs}/{command}/{run}/checkpoints/last.ckpt",
    "home": "~/my logs [1]/{command}/{run}",
    "relative to the working directory": "../my logs [1]/{command}/{run}",
    "as printed": "logs/{command}/{run}",
    "below the logs folder": "{command}/{run}",
    "checkpoint below the logs folder": "{command}/{run}/checkpoints/last.ckpt",
    "name": "{run}",
    "last": "last",
    "glob": "logs/{command}/[N-Z]*run*",
}
RUN = "a run (x=1), ~[2]"


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A logs folder with an awkward name, and a working directory beside it."""
    folder = tmp_path / "my logs [1]"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFUSION_LAB_LOGS", str(folder))
    monkeypatch.delenv("DIFFUSION_LAB_RESUMED", raising=False)
    monkeypatch.setattr("diffusion_lab.runs.find.ROOT", tmp_path / "repository")
    monkeypatch.setattr("sys.argv", [])
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_that_names_a_run_takes_every_form(setting: str, form: str, logs: Path) -> None:
    tested = SETTINGS[setting]
    name = "One run" if form == "glob" else RUN
    folder = logs / tested.command / name
    make_run(folder / "0" if tested.is_sweep else folder, tested.config)
    if tested.is_sweep:
        (folder / "multirun.yaml").touch()  # as Hydra does
    named = f"{name}/0" if tested.is_sweep and "checkpoint" in form else name
    assert tested.folder(FORMS[form].format(logs=logs, command=tested.command, run=named)) == str(folder)


def test_a_run_names_its_sweep_only_if_its_parent_is_the_folder_of_a_sweep(tmp_path: Path) -> None:
    run = make_run(tmp_path / "many" / "A")
    status.mark_running(run)
    with pytest.raises(UserError, match=rf"got {run}, which is a single run \(running\) and no sweep; `"):
        find_place("folder", str(run), SWEEP)
    (run.parent / "search.db").touch()
    assert find_place("folder", str(run), SWEEP).folder == run.parent


def test_a_sweep_folder_or_a_glob_names_all_its_runs_for_run(logs: Path) -> None:
    folders = [make_run(logs / "train" / "sweep" / name) for name in ("0", "1")]
    for value in ("sweep", "logs/train/sweep", "train/sweep/*", ["sweep/0", "sweep/1"], ["sweep", "sweep/0"]):
        config = OmegaConf.create({"run": value, "checkpoint": "last.ckpt"})
        assert [target.folder for target in find_targets(config)] == folders


def test_a_checkpoint_file_selects_this_checkpoint(logs: Path) -> None:
    make_run(logs / "train" / "A")
    file = "A/checkpoints/step_0000001.ckpt"
    (target,) = find_targets(OmegaConf.create({"run": file, "checkpoint": "last.ckpt"}))
    assert target.checkpoint == find_run("guide", file).checkpoint == logs / "train" / file
    with pytest.raises(UserError, match=r"`checkpoint` must not be given .* got best\.ckpt"):
        find_targets(OmegaConf.create({"run": file, "checkpoint": "best.ckpt"}))


def test_a_moved_logs_folder_does_not_hide_the_runs_in_the_default_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "repository" / "logs" / "train" / "A")
    assert {find_run("run", name).folder for name in ("A", "train/A", "logs/train/A")} == {folder}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "`guide` must be a run folder, a checkpoint file in it or last, got no value."),
        ("first_rum", "got first_rum, which does not exist in .*elsewhere or below .*; perhaps you mean .*first_run."),
        ("logs/train/first_rum", "got logs/train/first_rum, which .*; perhaps you mean .*train/first_run."),
        (
            "zzz",
            r"got zzz, which does not exist in .*elsewhere or below .*my logs \[1\] or .*; the .* DIFFUSION_LAB_LOGS ",
        ),
        ("zzz*", r"got zzz\*, which matches nothing in "),
        ("/nowhere", r"got /nowhere, which does not exist\.$"),
        ("x" * 300, "which does not exist in"),
        ("..", r"got \.\., which has no config.yaml\.$"),
        ("first_run/checkpoints/a.ckpt", "the checkpoints of this run are last.ckpt, step_0000001.ckpt"),
        ("*_run", "`guide` must name one run folder, got .*_run, which names 2, such as .*first_run and .*second_run"),
    ],
)
def test_a_name_without_a_run_is_refused_with_the_accepted_forms_and_the_closest_run(
    value: str | None, message: str, logs: Path
) -> None:
    for name in ("first_run", "second_run"):
        make_run(logs / "train" / name)
    with pytest.raises(UserError, match=message) as error:
        find_run("guide", value)
    assert "\n" not in str(error.value)


def test_last_names_the_run_with_the_newest_checkpoint(logs: Path) -> None:
    folders = [make_run(logs / "train" / name) for name in ("a", "sweep/b", "c")]
    os.utime(folders[1] / "checkpoints" / "last.ckpt", (2e9, 2e9))
    assert find_run("run", "last").folder == folders[1]
    with pytest.raises(UserError, match=r"classifier=last: there is no run folder in .*train_classifier"):
        find_run("classifier", "last", command="train_classifier")


def test_logs_in_the_working_directory_are_searched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("diffusion_lab.runs.find", "diffusion_lab.paths"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path / "clone")
    monkeypatch.delenv("DIFFUSION_LAB_LOGS", raising=False)
    monkeypatch.chdir(tmp_path)
    run, other = make_run(tmp_path / "logs" / "train" / "A"), make_run(tmp_path / "clone" / "logs" / "train" / "B")
    assert {find_run("run", name).folder for name in ("A", "train/A", "logs/train/A")} == {run}
    for file in run.glob("checkpoints/*"):
        os.utime(file, (2e9, 2e9))
    assert find_run("run", "last").folder == other  # the newest run of the logs folder in use
    shutil.rmtree(other)
    assert find_run("run", "last").folder == run
    with pytest.raises(
        UserError, match=r"no run folder in .*/logs/train_classifier; the .* DIFFUSION_LAB_LOGS .* names"
    ):
        find_run("classifier", "last", command="train_classifier")


def test_only_paths_that_are_found_from_anywhere_are_printed_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "repository" / "logs" / "train" / "A")
    for folder in (run, run.parent, run.parents[1], run.parents[2], tmp_path):
        monkeypatch.chdir(folder)
        printed = portable_path(run)
        monkeypatch.chdir("/")
        assert find_run("run", printed).folder == run
    monkeypatch.chdir(tmp_path / "repository")
    assert portable_path(run) == "logs/train/A"


def test_the_newest_run_as_guide_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_LOGS", str(tmp_path))
    guide, classifier = make_run(tmp_path / "train" / "A"), make_run(tmp_path / "train_classifier" / "B", CLASSIFIER)
    found = with_found_guides(["seed=1", "guide=last", "classifier='last'", "guide=null"])
    assert found == ["seed=1", f'guide="{guide}"', f'classifier="{classifier}"', "guide=null"]
    assert with_found_guides(["init=last"], "train") == [f'init="{guide}"']
    assert with_found_guides(["init=last"], "train_classifier") == [f'init="{classifier}"']


def test_the_default_logs_are_searched_for_the_newest_run_only_if_the_moved_logs_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_lab.runs.find.ROOT", tmp_path)
    monkeypatch.setenv("DIFFUSION_LAB_LOGS", str(tmp_path / "moved"))
    default = make_run(tmp_path / "logs" / "train" / "A")
    assert find_place("run", "last", run_of("train")).folder == default
    moved = make_run(tmp_path / "moved" / "train" / "B")
    os.utime(moved / "checkpoints" / "last.ckpt", (0, 0))
    os.utime(moved / "checkpoints" / "step_0000001.ckpt", (0, 0))
    assert find_place("run", "last", run_of("train")).folder == moved


@pytest.mark.parametrize("path", ["logs/train/RUN", "/a b/(1)", "/o'brien/RUN", '/the "run"'])
def test_a_printed_path_is_read_by_the_shell_and_by_hydra_as_the_same_path(path: str) -> None:
    (argument,) = shlex.split(shell_word(path))
    assert OverridesParser.create().parse_override(f"run={argument}").value() == path


def test_the_folder_of_a_command_that_was_stopped_at_its_start_is_no_run(logs: Path) -> None:
    run = make_run(logs / "train" / "A")
    for folder in (logs / "train" / "NEW", logs / "train" / "sweep" / "0"):
        (folder / ".hydra").mkdir(parents=True)
        (folder / "status.json").write_text("{}")
        for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
            (folder / ".hydra" / name).write_text(DIFFUSION)
            os.utime(folder / ".hydra" / name, (2e9, 2e9))
    assert find_run("run", "last").folder == run
    assert named_by_resume("last") == str(run)
    for name in ("NEW", "NEW/.hydra", "logs/train/NEW/.*"):
        with pytest.raises(UserError, match=r"which (has no config\.yaml|matches nothing|does not exist)"):
            find_place("resume", name, run_of("train"))


def test_a_run_without_checkpoints_is_the_last_one_only_if_no_run_has_any(logs: Path) -> None:
    run = make_run(logs / "train" / "A")
    (logs / "train" / "NEW").mkdir()
    (logs / "train" / "NEW" / "config.yaml").write_text(DIFFUSION)
    os.utime(logs / "train" / "NEW" / "config.yaml", (2e9, 2e9))
    assert find_place("run", "last", run_of("train")).folder == run
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert find_place("run", "last", run_of("train")).folder == logs / "train" / "NEW"


def test_the_newest_result_is_the_last_one_whether_or_not_a_run_has_checkpoints(logs: Path) -> None:
    for command in ("train", "evaluate"):
        folder = logs / command / "A"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
    checkpoint = logs / "train" / "A" / "checkpoints" / "last.ckpt"
    checkpoint.touch()
    os.utime(checkpoint, (1e9, 1e9))
    assert find_place("numbers", "last", MEASURED).folder == logs / "evaluate" / "A"


def test_a_checkpoint_of_a_plain_trainer_is_refused_with_the_method_that_loads_it(tmp_path: Path) -> None:
    (tmp_path / "epoch=0.ckpt").touch()
    with pytest.raises(UserError, match=r"which is in no run folder; DiffusionModule.load_from_checkpoint loads"):
        find_run("run", str(tmp_path / "epoch=0.ckpt"))
