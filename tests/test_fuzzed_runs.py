"""Files of a run folder with random damage: a sentence or a result, and nothing runs, hangs or writes elsewhere."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab import checkpoint_files
from diffusion_lab.config import overrides as typed
from diffusion_lab.config.command_line import as_hydra_arguments, flags_first
from diffusion_lab.config.compose import error_message
from diffusion_lab.config.library_classes import with_plus
from diffusion_lab.config.search_path import with_search_path
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs import class_names, metrics_log, resume, status
from diffusion_lab.runs.load import load_config, load_module
from diffusion_lab.runs.settings.changes import flatten
from diffusion_lab.runs.tables import table as run_table
from support.commands import TINY, run
from support.fuzzing import changed, damaged

SHORT, LONG = 8, 288
"""Numbers of cases of each kind: by default, and with the tests marked `full`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *TINY, "model.channel_multipliers=[1]", "conditioning=label", "data.max_images=300",
               "trainer.log_every_n_steps=1", f"hydra.run.dir={folder}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run. At the end, nothing but the copy is in its parent, which is the working directory."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


CHUNKS = [range(SHORT), *(range(start, start + 40) for start in range(SHORT, LONG, 40))]

seeds = pytest.mark.parametrize(
    "numbers", [pytest.param(chunk, marks=[pytest.mark.full] if chunk.start else []) for chunk in CHUNKS], ids=str
)
"""The seeds of the short run and, marked `full`, those of the long run."""


def survive(function: Callable[..., object], *arguments: Any, also: type[Exception] = UserError) -> str | None:
    """Call a function. Return the message of an expected error, or None if the function returns.

    also: another expected error.
    """
    try:
        function(*arguments)
    except (UserError, also) as error:
        return str(error)
    return None


def damage(file: Path, content: bytes, numbers: range) -> Iterator[None]:
    """Write the content with the damage of each seed to the file."""
    for number in numbers:
        file.write_bytes(damaged(content, random.Random(number)))
        yield


def change(file: Path, content: Any, numbers: range) -> Iterator[None]:
    """Write plain content with the changes of each seed to a YAML or JSON file."""
    for number in numbers:
        new = changed(content, random.Random(number))
        file.write_text(yaml.safe_dump(new) if file.suffix == ".yaml" else json.dumps(new))
        yield


def files(file: Path, numbers: range) -> Iterator[None]:
    """Write both kinds of damage to a file."""
    content = file.read_bytes()
    plain = yaml.safe_load(content) if file.suffix == ".yaml" else json.loads(content)
    yield from damage(file, content, numbers)
    yield from change(file, plain, numbers)


@seeds
def test_config(numbers: range, copied: Path) -> None:
    file, messages = copied / "config.yaml", []
    now = flatten(yaml.safe_load(file.read_text()))
    for _ in files(file, numbers):
        messages.append(survive(resume._saved_config, copied, copied, now))
        messages.append(survive(load_module, copied))
    refused = [message for message in messages if message is not None]
    assert len(refused) > len(messages) / 4


@seeds
def test_overrides(numbers: range, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copied / "overrides.yaml"
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={copied}"])

    def restore() -> None:
        monkeypatch.delenv("DIFFUSION_LAB_RESUMED", raising=False)
        sys.argv = ["train.py", f"resume={copied}"]
        resume.restore_command_line("train")
        compose("train", sys.argv[1:])

    for _ in files(file, numbers):
        survive(restore)


@seeds
def test_status(numbers: range, copied: Path) -> None:
    for _ in files(copied / status.STATUS, numbers):
        found = status.observe(copied)
        assert found is None or (found.text and found.hours() >= 0)


@seeds
def test_class_names(numbers: range, copied: Path) -> None:
    config = load_config(copied)
    for name in ("class_names.json", "trained_classes.json"):
        for _ in files(copied / name, numbers):
            survive(class_names.load, copied)
            survive(class_names.load_trained, copied, config, 10)
            survive(class_names.of_label, ["Bag", 1], copied, config)


def table(folder: Path) -> None:
    rows = run_table.find_rows(folder)
    run_table.show_used_settings(rows)
    assert all(isinstance(row, dict) for row in run_table.cells(rows))


@seeds
def test_results_and_settings_of_a_table(numbers: range, copied: Path) -> None:
    number = {
        "name": "fd_fashion_cnn_20_train",
        "value": 3.5,
        "fingerprint": {"version": 1, "sampler": {"name": "DDIM"}},
    }
    results = {"run": str(copied), "checkpoint": "last.ckpt", "step": 2, "evaluations": 8, "numbers": [number]}
    names = ("metrics.json", "summary.json", ".hydra/hydra.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml")
    for name in names:
        (copied / "metrics.json").write_text(json.dumps(results))
        before = (copied / name).read_bytes()
        for _ in files(copied / name, numbers[:40:4]):
            survive(table, copied)
        (copied / name).write_bytes(before)


@seeds
def test_metrics_log(numbers: range, copied: Path) -> None:
    file = copied / "metrics.csv"
    content, plain = file.read_bytes(), [line.split(",") for line in file.read_text().splitlines()]
    for _ in damage(file, content, numbers):
        survive(metrics_log.read_log, copied)
    for number in numbers:
        lines = changed(plain, random.Random(number))
        file.write_text("\n".join(",".join(map(str, line)) if isinstance(line, list) else str(line) for line in lines))
        survive(metrics_log.read_log, copied)


@seeds
def test_checkpoint(numbers: range, copied: Path) -> None:
    file = copied / "checkpoints" / "last.ckpt"
    content = file.read_bytes()
    for _ in damage(file, content, numbers):
        survive(load_module, copied)
    file.write_bytes(content)
    plain = torch.load(file)
    for number in numbers:
        rng = random.Random(number)
        new = changed(plain, rng)
        if isinstance(new, dict) and isinstance(new.get("state_dict"), dict):
            new["state_dict"] = changed(dict(new["state_dict"]), rng)
        torch.save(new, file)
        survive(load_module, copied)
        survive(checkpoint_files.newest, file.parent, also=checkpoint_files.DamagedCheckpointError)


def compose(command: str, words: list[str]) -> None:
    words = flags_first(as_hydra_arguments(command, words))
    typed.require_single_choices(words)
    words = with_plus(command, with_search_path(words))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            hydra.compose(command, overrides=[word for word in words if not word.startswith("-")])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(error_message(error, command)) from error


@seeds
def test_command_line(numbers: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["schedule=cosine", "data.batch_size=8", "model=unet_tiny", "trainer.max_steps=3", "--seed", "3",
             "-m", "label=[cat,dog]", "run=logs/train/x", "~logger", "+experiment=x", "metrics=[fid,kid]"]  # fmt: skip
    for number in numbers:
        rng = random.Random(number)
        given = [os.fsdecode(damaged(word.encode(), rng)).replace("\0", "") if rng.random() < 0.5 else word
                 for word in rng.sample(words, 4)]  # fmt: skip
        for command in ("train", "sample", "evaluate"):
            monkeypatch.setattr(sys, "argv", [command, *given])
            survive(compose, command, given)
    assert list(tmp_path.iterdir()) == []
