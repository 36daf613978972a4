"""Help texts: every command names the settings and config groups that it accepts, and no others."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffusion_lab.commands.console import COMMANDS
from diffusion_lab.commands.help import WITHOUT_CONFIG, combination_note, help_text, requested_topic
from diffusion_lab.config.documentation import group_lines, header, settings
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from support.commands import ROOT, run

CONFIGURED = [command for command in COMMANDS if command not in WITHOUT_CONFIG]
PLUMBING = {"process", "hydra"}
"""Nodes that repeat other settings."""


@pytest.fixture(autouse=True)
def without_hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "120")
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


@cache
def text_of(command: str) -> str:
    return help_text(command)


def compose(command: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, overrides=list(overrides))


def listed(text: str) -> tuple[set[str], dict[str, list[str]]]:
    """Return the settings, and the choices of each group, that a help text lists."""
    own, _, groups = text.partition("\nconfig groups")
    names = set(re.findall(r"^  ([\w.]+) {2,}\S", own.partition("\nsettings")[2], re.MULTILINE))
    choices: dict[str, list[str]] = {}
    for line in groups.partition("\n\n")[0].splitlines()[1:]:
        if group := re.match(r"  ([\w/]+)( |$)", line):
            choices[group[1]] = []
        elif re.match(r"    \w", line):
            choices[list(choices)[-1]] += line.split()
    return names, choices


@pytest.mark.parametrize("command", CONFIGURED)
def test_the_help_names_every_setting_and_group_of_the_config(command: str) -> None:
    names, choices = listed(text_of(command))
    config = compose(command)
    without_choice = {str(key) for key in config if (CONF / str(key)).is_dir() and config[key] is None}
    nodes = {str(key) for key in config} - PLUMBING - without_choice
    assert {name.partition(".")[0] for name in names} | choices.keys() >= nodes
    assert all(len(words) >= 1 for words in choices.values())


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_command_accepts_every_setting_and_group_that_its_help_names(command: str) -> None:
    names, choices = listed(text_of(command))
    assert names
    config = compose(command, *(f"{name}=null" for name in names if not (CONF / name.partition(".")[0]).is_dir()))
    assert all(name.partition(".")[0] in config for name in names)
    defaults = re.findall(r"^  (\w+) .*\[([\w]+)\]$", text_of(command), re.MULTILINE)
    compose(command, *(f"{group}={choice}" for group, choice in defaults if choice in choices[group]))


def test_the_choices_of_a_command_are_those_that_it_trains() -> None:
    diffusion, classifier = (listed(text_of(name))[1] for name in ("train", "train_classifier"))
    assert "half_unet" not in diffusion["model"]
    assert "unet_tiny" in diffusion["model"]
    assert "half_unet" in classifier["model"]
    assert "classifier_fashion_mnist" not in diffusion["experiment"]
    assert "model" not in listed(text_of("sample"))[1]


def test_a_classifier_of_another_config_folder_is_a_choice_of_train_classifier(
    tmp_path: Path,
) -> None:
    for group, name, text in [
        ("model", "my_judge", "# Mine.\ndefaults: [/_half_unet@_here_, _self_]\nchannels: 16\n"),
        ("experiment", "judging", "# @package _global_\n# Mine.\ndefaults:\n  - override /model: my_judge\n"),
    ]:
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    diffusion, classifier = (
        listed(help_text(name, "", [f"hydra.searchpath=[file://{tmp_path}]"]))[1]
        for name in ("train", "train_classifier")
    )
    assert "my_judge" not in diffusion["model"]
    assert "judging" not in diffusion["experiment"]
    assert "my_judge" in classifier["model"]
    assert "judging" in classifier["experiment"]


def test_a_setting_is_shown_with_its_default_and_its_comment() -> None:
    lines = text_of("sample").splitlines()
    assert any(re.fullmatch(r"  num_images +64 +number of images", line) for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_contains_purpose_usage_three_examples_and_the_place_of_the_results(command: str) -> None:
    purpose, _, *lines = text_of(command).splitlines()
    assert purpose.startswith("Diffusion Lab: ")
    assert lines[0].startswith(f"usage: python src/{command}.py ")
    examples = [line for line in lines if re.match(r"  (python|torchrun .*) src/", line)]
    assert len(examples) >= 3
    assert any(line.startswith("Results: ") for line in lines)


def test_the_help_of_a_group_shows_what_each_choice_is_with_its_settings() -> None:
    text = help_text("train", "schedule")
    assert (
        "  cosine          Signal level alpha_bar = alpha_t^2 that falls as a squared cosine (Nichol & Dhariwal 2021)\n"
        in text
    )
    assert "schedule.offset=0.008" in text
    choice = help_text("train", "schedule=cosine")
    assert "  schedule.max_beta           0.999  maximum variance of a step" in choice.splitlines()


def test_the_help_of_another_name_of_a_metric_shows_the_settings_of_the_metric() -> None:
    tables = [help_text("evaluate", f"metrics={name}").partition("\n\n  ")[2] for name in ("bound", "nll")]
    assert "metrics.bound.num_images" in tables[0]
    assert tables[0] == tables[1]


def test_a_value_in_a_file_replaces_the_default_of_the_shared_file() -> None:
    found = settings(CONF / "model" / "unet_quick.yaml", "model")
    assert (found["model.channels"].default, found["model.channels"].meaning) == ("32", "channels of the first level")


def test_a_config_folder_adds_its_choices() -> None:
    project = f"hydra.searchpath=[file://{ROOT}/examples/my_project/conf]"
    assert "  flat_resnet " in help_text("train", "model", [project])
    assert "flat_resnet" not in help_text("train", "model")


def test_the_help_of_another_package_shows_settings_without_a_comment(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = "_target_: my.Net\nresolution: ${data.resolution}\nwidth: 64\ndepth: 3 # number of layers\n"
    (tmp_path / "model" / "net.yaml").write_text(file)
    text = help_text("train", "model=net", [f"hydra.searchpath=[file://{tmp_path}]"])
    lines = [line.split() for line in text.splitlines()]
    assert [line for line in lines if line and line[0].startswith("model.")] == [
        ["model.resolution", "as", "data.resolution"],
        ["model.width", "64"],
        ["model.depth", "3", "number", "of", "layers"],
    ]


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("modell", "--help must be followed by a config group or a setting of .*, got modell; perhaps you mean model."),
        ("schedule=cosin", "schedule must be one of .*, got cosin; perhaps you mean cosine."),
    ],
)
def test_an_unknown_topic_is_rejected(topic: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        help_text("train", topic)


@pytest.mark.parametrize(
    ("words", "topic"),
    [(["--help"], ""), (["-h", "model"], "model"), (["--help=model"], "model"), (["a=1", "--help", "-m"], ""),
     (["a=1"], None)],
)  # fmt: skip
def test_the_word_after_the_flag_is_the_topic(words: list[str], topic: str | None) -> None:
    assert requested_topic(words) == topic


def test_more_words_than_the_topic_are_answered_by_the_command_that_shows_their_values() -> None:
    words = ["callbacks=default", "experiment=quickstart"]
    expected = "callbacks=default experiment=quickstart --cfg job shows the values of this combination."
    assert combination_note("train", ["--help", *words]).endswith(f"train.py {expected}")
    assert combination_note("train", ["--help", words[0]]) == ""
    assert combination_note("train", ["--help", "model"]) == ""


def test_every_group_is_described_and_every_file_begins_with_a_sentence() -> None:
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.glob("**/*.yaml") if path.parent != CONF}
    assert folders == {*group_lines()}
    for path in CONF.glob("*/*.yaml"):
        assert header(path), path
        assert header(path)[0].endswith((".", "'")), path
    config = OmegaConf.load(CONF / "_groups.yaml")
    assert all(len(str(line)) < 100 for line in config.values())


def test_the_help_appears_without_the_import_of_torch() -> None:
    code = (
        "import sys; sys.argv = ['train', '--help']; from diffusion_lab.commands.train import main; main(); "
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_command_prints_its_help_and_one_sentence_for_an_unknown_topic(tmp_path: Path) -> None:
    done = run("sample.py", "--help", "sampler", cwd=tmp_path)
    assert done.stdout.startswith(f"sampler: sampling algorithm\n\nusage: python {ROOT}/src/sample.py sampler=CHOICE\n")
    refused = run("sample.py", "--help", "model", cwd=tmp_path)
    assert refused.stderr.startswith("error: --help must be followed by a config group or a setting of python ")
    assert len(refused.stderr.splitlines()) == 1
