"""The command line as it is typed, and the arguments that Hydra receives."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_lab.config.command_line import as_hydra_arguments
from diffusion_lab.errors import UserError


def value(command: str, *words: str) -> object:
    """Return the value that Hydra reads from the last word."""
    return OverridesParser.create().parse_override(as_hydra_arguments(command, words)[-1]).value()


@pytest.mark.parametrize(
    "text",
    [
        "/a b/c (1)", "/a,b c=d", "~/runs/x", "/a~b", "/x[1]", "/x{1}", "/a;b", "/it's", "a=b", "/ä", "/a#b", "!x",
        'say "x"', "back\\slash(", "f(x)", "3,", "[a", "(1,2)", "/with`tick",
    ],
)  # fmt: skip
def test_a_value_that_the_grammar_of_hydra_rejects_is_taken_literally(text: str) -> None:
    assert value("train", f"data.path={text}") == text


@pytest.mark.parametrize("text", ["2024", "1e3", "true"])
def test_a_folder_may_have_the_name_of_a_number(text: str) -> None:
    assert value("train", f"data.path={text}") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), ("1e-4", 1e-4), ("null", None), ("[1,2]", [1, 2]), ("a b", "a b"), ("'a b'", "a b"),
     ("${seed}", "${seed}")],
)  # fmt: skip
def test_a_value_that_the_grammar_accepts_is_unchanged(text: str, expected: object) -> None:
    assert value("train", f"num_samples={text}") == expected


@pytest.mark.parametrize("name", ["a,b", "[a]"])
def test_the_name_of_an_existing_folder_is_a_string(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert value("sample", f"run={name}") != name
    (tmp_path / name).mkdir()
    assert value("sample", f"run={name}") == name


def test_the_name_of_a_folder_does_not_change_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    assert value("train", "seed=1") == 1


def test_items_of_a_list_and_of_a_sweep_are_taken_literally_one_by_one() -> None:
    assert value("sample", "cascade=[/a (1),/b=2]") == ["/a (1)", "/b=2"]
    words = as_hydra_arguments("sample", ["-m", "run=/a (1),/b"])
    assert words == ["-m", 'run="/a (1)",/b']


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "cascade=[/a (1),/b],[/c]"], ["-m", 'cascade=["/a (1)",/b],[/c]']),
        (["-m", 'data.classes=["a,b",c=d]'], ["-m", 'data.classes=["a,b","c=d"]']),
        (["-m", "hydra.launcher.prefix=run --bind /a,/b x"], ["-m", 'hydra.launcher.prefix="run --bind /a,/b x"']),
        (["--config-dir", "mine", "+my_group=choice"], ["--config-dir", "mine", "+my_group=choice"]),
        (["+experiment=quickstart"], ["experiment=quickstart"]),
        (["++seed=3"], ["seed=3"]),
        (["metrics=[fid,nll]", "metrics.nll.num_images=5"], ["metrics=[fid,nll]", "metrics.bound.num_images=5"]),
        (["+metrics.nll.quantity.more=5"], ["+metrics.bound.quantity.more=5"]),
        (["metrics.kid.num_subsets=5"], ["metrics.kid.num_subsets=5"]),
        (["+model.extra=3"], ["+model.extra=3"]),
        (["~callbacks.measure_distance"], ["callbacks.measure_distance=null"]),
        (["~logger.csv"], ["logger.csv=null"]),
        (["~experiment"], []),
        (["experiment=null", "seed=3"], ["seed=3"]),
        (["schedule=1"], ['schedule="1"']),
        (["seed=1", "-m", "model=unet_tiny,unet_small"], ["-m", "seed=1", "model=unet_tiny,unet_small"]),
        (["--cfg", "job", "seed=1"], ["--cfg", "job", "seed=1"]),
        (["--config-dir", "x y", "seed=1"], ["--config-dir", "x y", "seed=1"]),
        (["resume="], ["resume="]),
        (["+callbacks=mine"], ["callbacks=[default,mine]"]),
    ],
)
def test_words_that_hydra_would_reject_become_overrides(words: list[str], expected: list[str]) -> None:
    assert as_hydra_arguments("train", words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "settings are given as NAME=VALUE: seed=3, got --seed 3."),
        (["--seed=3"], "settings are given as NAME=VALUE: seed=3, got --seed=3."),
        (["--batch-size", "3"], "settings are given as NAME=VALUE: batch_size=3, got --batch-size 3."),
        (["-s", "seed=3"], "settings are given as NAME=VALUE: s=VALUE, got -s."),
        (["seed", "=", "3"], "settings have no spaces around =: seed=3, got seed = 3."),
        (["seed", "=3"], "settings have no spaces around =: seed=3, got seed =3."),
        (["seed=", "3"], "settings have no space after =: seed=3, got seed= 3."),
        (["schedule"], "settings are given as NAME=VALUE: schedule=VALUE, got schedule."),
        (
            ["schedule=linear,", "cosine"],
            "values have no space after .*: schedule=linear,cosine, got schedule=linear, .*",
        ),
        (["cosine"], "settings are given as NAME=VALUE: lr_schedule=cosine or schedule=cosine, got cosine."),
        (["my key=3"], "settings are given as NAME=VALUE, got my key=3."),
        ([""], "settings are given as NAME=VALUE, got an empty argument."),
        (["=3"], "settings are given as NAME=VALUE, got =3."),
        (["~schedule"], "schedule must be one of beta_warmup, .*, vp, got ~schedule."),
        (["~data.path"], "settings cannot be deleted; data.path=null or another value replaces it, got ~data.path."),
        (["logger=null"], "logger must be one of csv, .*, got null; logger=csv writes metrics.csv only."),
        (["logger=false"], "logger must be one of csv, .*, got false; logger=csv writes metrics.csv only."),
        (["conditioning=null"], "conditioning must be one of label, none, got null; use conditioning=none."),
        (["schedule="], "schedule must be one of .*, got no value."),
        (
            ["metrics=[fid"],
            r"the list of metrics needs a closing bracket: 'metrics=\[fid\]', got \[fid.",
        ),
        (["optimizer=none"], "optimizer must be one of adam, adamw, muon, sgd, got none."),
        (
            ["+modell.channels=3"],
            r"\+ must be followed by the name of a node of the config, .*, got \+modell.channels=3.",
        ),
        (["--cfg", "jobs", "seed=1"], "--cfg must be followed by job, hydra or all, got jobs."),
        (
            ["--config-dir", "mine", "hydra.launcher.time=3"],
            "hydra/launcher and hydra/sweeper must be given with -m, got hydra.launcher.time=3 without -m.",
        ),
        (["-m", "seed=1,2", "--cfg", "job"], r"only one of -m \(a sweep\), .* can be given, got -m and --cfg; .*"),
        (["--cfg=job", "--run"], r"only one of -m \(a sweep\), .* can be given, got --cfg=job and --run; .*"),
        (["hydra.run.dir="], "hydra.run.dir must be a writable folder, got no value."),
        (
            ["label=flags", "of", "the", "world", "seed=3"],
            "a setting whose value has spaces must be quoted: 'label=flags of the world', got .*world.",
        ),
        (
            ["seed=3", "/my/pictures"],
            r"settings are given as NAME=VALUE: data=class_folders data.path=/my/pictures \(one folder per class\) or "
            "data=folder data.path=/my/pictures, got /my/pictures.",
        ),
        (
            ["data=/my/pictures"],
            "data must be the name of a data set, got the path /my/pictures; use data=class_folders "
            r"data.path=/my/pictures \(one folder per class\) or data=folder data.path=/my/pictures.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_words_are_rejected_with_the_right_words(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        as_hydra_arguments("train", words)


@pytest.mark.parametrize(
    ("command", "words", "typed"),
    [
        ("compare", "A B", "'numbers=[A,B]', got A B"),
        ("compare", "last allow=[seed]", "numbers=last, got last"),
        ("compare", "numbers=A B", "'numbers=[A,B]', got numbers=A B"),
        ("compare", "numbers=[A, B]", "'numbers=[A,B]', got numbers=[A, B]"),
        ("compare", "numbers A B", "'numbers=[A,B]', got numbers A B"),
        ("sample", "./a", "run=./a, got ./a"),
        ("sample", "num_images=4 last", "run=last, got last"),
        ("evaluate", "logs/train/x sampler=ddim", "run=logs/train/x, got logs/train/x"),
        ("evaluate", "run=x train/y", "'run=[x,train/y]', got run=x train/y"),
        ("evaluate", "x", "run=x, got x"),
        ("reconstruct_ema", "./a length=0.1", "run=./a, got ./a"),
        ("train", "logs/train/x", "resume=logs/train/x, got logs/train/x"),
        ("train", "last", "resume=last, got last"),
        ("train_classifier", "a/checkpoints/last.ckpt", "resume=a/checkpoints/last.ckpt, got a/checkpoints/last.ckpt"),
    ],
)
def test_runs_without_the_name_of_their_setting_are_refused_with_the_setting(
    command: str, words: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_LOGS", str(tmp_path))
    for name in ("x", "y"):
        (tmp_path / "train" / name / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        as_hydra_arguments(command, words.split())
    assert str(error.value) == f"settings are given as NAME=VALUE: python src/{command}.py {typed}."


def test_a_word_that_names_no_run_is_no_setting_that_names_runs() -> None:
    with pytest.raises(UserError, match=r"NAME=VALUE: seed=VALUE, got seed\."):
        as_hydra_arguments("train", ["seed"])
    with pytest.raises(UserError, match=r"NAME=VALUE: sampler=ddim or time_grid=ddim, got ddim\."):
        as_hydra_arguments("evaluate", ["ddim"])
    with pytest.raises(UserError, match=r"NAME=VALUE: allow=VALUE, got allow\."):
        as_hydra_arguments("compare", ["allow"])
