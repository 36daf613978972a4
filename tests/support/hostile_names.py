"""Names of folders and classes that a terminal, rich, a spreadsheet, Matplotlib or a format string would interpret."""

import io
import os
import random
import re
import sys

import pytest

from diffusion_lab.reporting.text import EscapedStream

SHOWN = {
    "r[bold red]q": "r[bold red]q",  # rich would remove the tag
    "r[x": "r[x",
    "x[/b]": "x[/b]",  # rich would raise MarkupError
    ":smile:": ":smile:",
    "r\x1b[31mq": r"r\x1b[31mq",
    "t\x1b]0;title\x07": r"t\x1b]0;title\x07",
    "c\x9b2J": r"c\x9b2J",  # CSI as one character
    "b\u202ec": r"b\u202ec",  # reverses the text that follows
    "i\u2066d": r"i\u2066d",
    "two\nlines": r"two\nlines",
    "over\rwritten": r"over\rwritten",
    "not\udcffutf8\udc9b": r"not\udcffutf8\udc9b",
    "=1+1": "=1+1",
    "-x": "-x",
    "@SUM(A1)": "@SUM(A1)",
    "+cmd": "+cmd",
    "$x$ $\\frac$": "$x$ $\\frac$",
    "_hidden": "_hidden",
    "%s %(name)d {0}": "%s %(name)d {0}",
    'quo"te,comma': 'quo"te,comma',
    "a|b<i>": "a|b<i>",
    "null": "null",
    "1": "1",
    "[a,b]": "[a,b]",
    "\u65e5\u672c": "\u65e5\u672c",
}
"""Name of a folder or class -> the form that a terminal shows."""

INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that no output of a command contains, unless it is a terminal."""

PIECES = (
    *("[/", "[red]", "]", "[link=x]", ":x:", "\x1b[2J", "\x1b]8;;u\x07", "\x9b", "\x85", "\x00", "\x7f", "\b", "\r"),
    *("\n", "\u202d", "\u2069", "\u2028", "\udc80", "\udcff", "=", "+", "-", "@", "\t", "'", '"', ",", ";", "$", "\\"),
    *("_", "^", "%", "%d", "{", "}", "{0.x}", "|", "<", "&", "#", "1e5", "nan", "null", "a", " "),
    *("\u0301", "\u65e5", "\U0001f600"),
)


def record_output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make stdout and stderr of this process the streams of a command whose output is recorded.  Call in the test."""
    file = io.StringIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, EscapedStream(file))
    return file


def fuzzed_name(seed: int) -> str:
    """Return a name of a class, of up to 12 pieces that mean something to a terminal, a library or a file format."""
    choose = random.Random(seed)
    return "".join(choose.choice(PIECES) for _ in range(choose.randint(1, 12)))


def fuzzed_folder_name(seed: int) -> str:
    """Return a fuzzed name that a folder can have, different for each seed."""
    name = fuzzed_name(seed).replace("\x00", "").replace("/", "")
    return os.fsdecode(os.fsencode(f"{name}{seed}"))
