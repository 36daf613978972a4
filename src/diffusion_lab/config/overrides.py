"""Overrides of the command line: quoting, and names of folders made of them."""

import fnmatch
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

LAYOUT = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.num_workers"),
    *("sweep.*", "logger", "logger.*", "hydra*"),
)
"""Settings that say where and how a run is done, and not what it is."""


SWEEP_VARIABLE = "DIFFUSION_LAB_SWEEP"


def identifying_overrides(words: Sequence[str]) -> set[str]:
    """The words that say what a run is."""
    return {word for word in words if not any(fnmatch.fnmatch(override_key(word), pattern) for pattern in LAYOUT)}


def override_key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def with_sweep_name(words: Sequence[str], folder: Path) -> list[str]:
    """The words of a run, with the name of its sweep."""
    return [*(word for word in words if override_key(word) != "sweep.name"), f"sweep.name={quote(folder.name)}"]


def quote(text: str) -> str:
    """A text as a value of Hydra's override grammar, in which a backslash counts only before a quote."""
    escaped = re.sub(r'(\\+)(?="|$)', r"\1\1", text).replace('"', '\\"')
    return f'"{escaped}"'


def sweep_folder_name(name: str | None, params: DictConfig | None) -> str:
    """The name of a sweep's folder: the given one, or what is swept, of what, and a digest of all else that was said.

    params: hydra.sweeper.params, which some sweepers sweep as well.
    """
    if name:
        return _plain(str(name))
    parsed = _parsed()
    keys = [*_swept(parsed), *(str(key) for key in params or ())]
    fixed = [word.input_line or "" for word in parsed if word.key_or_group not in keys]
    of = [_plain(Path(word.partition("=")[2]).name) for word in fixed if override_key(word) in ("experiment", "run")]
    meaning = sorted(identifying_overrides(fixed))
    digest = [_digest(" ".join(meaning))] if meaning else []
    return "-".join([*of, "_".join(map(_plain, keys)) or "one", *digest])


def run_folder_name(words: Sequence[str], params: DictConfig | None) -> str:
    """The name of a run's folder in its sweep: what is swept and the value of each."""
    keys = {*_swept(_parsed()), *(str(key) for key in params or ())}
    swept = [str(word) for word in words if override_key(str(word)) in keys]
    shown = "_".join(
        f"{override_key(word)}-{word.partition('=')[2].rpartition('/')[2]}" for word in swept
    )  # paths by their ends
    return _plain(shown, told="_".join(swept) if any("/" in word for word in swept) else None) or "run"


def export_command_line() -> None:
    """Lets processes that others start for the runs of a sweep know what is swept: their own command says nothing."""
    if any(word in ("-m", "--multirun") for word in sys.argv[1:]):
        os.environ[SWEEP_VARIABLE] = "\n".join(sys.argv[1:])


def _parsed() -> list[Override]:
    given = os.environ.get(SWEEP_VARIABLE, "").split("\n")
    words = [word for word in given if re.match(r"[\w.+~/@-]+=", word) and not re.match(r"\+*hydra\b", word)]
    try:
        return OverridesParser.create().parse_overrides(words)
    except OverrideParseException:
        return []  # said by Hydra in its own place


def _swept(parsed: Sequence[Override]) -> list[str]:
    return [word.key_or_group for word in parsed if word.is_sweep_override()]


def _plain(text: str, longest: int = 120, told: str | None = None) -> str:
    """A text as a file name that the override grammar takes as it is; one that had to change ends in a digest.

    told: all that it stands for, where it is less.
    """
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")
    if told is None and plain == text and len(plain) <= longest:
        return plain
    return f"{plain[: longest - 5]}-{_digest(told or text)[:4]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


OVERRIDES_FILE = "overrides.yaml"
"""The command line of a run, in its folder."""
