"""Text from files, such as names of folders and classes, in the form that a terminal, a shell or a plot shows.

A name may contain anything: escape codes that move the cursor, line breaks, characters that reverse the text, bytes
that are not UTF-8. `terminal_text` makes such characters visible and is idempotent. It is applied in two places:

- `EscapedStream` is stdout and stderr of the commands. Everything that is printed, logged or raised passes through it,
  also by other libraries. It cannot distinguish a line break in a name from the end of a line.
- Code that puts a name into a line calls `terminal_text`, which also escapes line breaks.

Progress bars and tables write escape codes of their own. They write to `unescaped(stream)` and escape their texts
first; see `reporting.console`.
"""

import os
import re
import shlex
from collections.abc import Iterable
from typing import Any, TextIO

_HIDDEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters (C0 without tab and line feed, C1), line separators, bidirectional controls, and bytes that are
not UTF-8, which Python stores as surrogates."""

_IN_STREAM = re.compile(f"[{_HIDDEN}]")
_IN_NAME = re.compile(f"[{_HIDDEN}\t\n]")

_PROGRESS_LINE = re.compile(r"(\r*)(.*?)([\r\n]*)\Z", re.DOTALL)
"""Libraries overwrite a progress line with carriage returns at the start or at the end of a text."""

_TO_OTHER_LINE = re.compile(r"\r?(\n|\x1b\[A)*")
"""Libraries move to the line of another progress bar with a text of line feeds and codes for cursor up only."""


def terminal_text(text: object, limit: int | None = None) -> str:
    r"""Return a text in one line without invisible characters, which become \x1b, \n, \u202e.

    limit: largest number of characters; a longer text loses its middle. None: no limit.

    >>> terminal_text("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    shown = _IN_NAME.sub(_visible, str(text))
    if limit is None or len(shown) <= limit:
        return shown
    end = (limit - 3) // 3
    return f"{shown[: limit - 3 - end]}...{shown[len(shown) - end :]}"


def terminal_lines(text: str) -> str:
    """Return a text of several lines with its line breaks and without other invisible characters."""
    return _IN_STREAM.sub(_visible, text)


def message_text(text: str) -> str:
    """Return a message whose further lines are indented, so that no line looks like another message."""
    return re.sub(r"\n(?!  )", "\n  ", terminal_lines(text))


def plot_text(text: object) -> str:
    """Return a title, label or tick of a plot in which Matplotlib interprets nothing.

    Matplotlib would set text between two dollar signs as a formula, and omit labels with a leading underscore.
    """
    lines = "\n".join(terminal_text(line, limit=120) for line in str(text).split("\n"))
    return ("\u200a" if lines.startswith("_") else "") + lines.replace("$", r"\$")


def shell_text(text: object) -> str:
    r"""Return a text quoted for a shell, in the form $'...' if it contains invisible characters.

    >>> print(shell_text("a b"), shell_text("a\x1b"))
    'a b' $'a\x1b'
    """
    given = str(text)
    if not _IN_NAME.search(given):
        return shlex.quote(given)
    return "$'" + "".join(_in_ansi_quotes(character) for character in given) + "'"


def shell_line(texts: Iterable[object]) -> str:
    """Return the words of a command line, each quoted for a shell."""
    return " ".join(map(shell_text, texts))


def _visible(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()


def _in_ansi_quotes(character: str) -> str:
    if _IN_NAME.match(character):
        return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"\\{character}" if character in "\\'" else character


class EscapedStream:
    """An output stream of a command: `stream`, except that invisible characters are written as visible ones.

    stream: stream for writers that use escape codes and escape their own texts; see `unescaped`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if _IN_STREAM.search(text) and not _TO_OTHER_LINE.fullmatch(text):
            text = _PROGRESS_LINE.sub(lambda part: part[1] + terminal_lines(part[2]) + part[3], text, count=1)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unescaped(stream: Any) -> Any:
    """Return the stream below an `EscapedStream`, or below a stream with which `rich` replaces it; else the stream."""
    while True:
        if isinstance(stream, EscapedStream):
            stream = stream.stream
        elif (below := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = below
        else:
            return stream


def file_name_with(prefix: str, name: str) -> str:
    """Return a file name of prefix and name; of a name that is too long for a file system, its first characters."""
    complete = prefix + name
    return complete if len(os.fsencode(complete)) <= 240 else complete[:60]
