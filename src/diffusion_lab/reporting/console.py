"""Tables and progress bars on the terminal whose texts, such as names of folders and classes, are shown literally.

`rich` would interpret `[bold]` and `:smile:` in these texts, and would write escape codes in them to the terminal.
"""

import sys
from typing import Any

from rich.console import Console as RichConsole
from rich.file_proxy import FileProxy
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn
from rich.text import Text

from diffusion_lab.reporting.text import EscapedStream, terminal_lines, terminal_text, unescaped


class Console(RichConsole):
    """A console that shows all texts literally; its own escape codes reach the terminal."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        stream = unescaped(sys.stderr if stderr else sys.stdout)
        super().__init__(file=stream, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(terminal_lines(text), **options)


class Progress(RichProgress):
    """Progress bars with literal descriptions, above which text that is printed in the meantime is also literal."""

    def start(self) -> None:
        super().start()
        for name in ("stdout", "stderr"):  # stop() restores the streams that start() replaced
            if isinstance(stream := getattr(sys, name), FileProxy):
                setattr(sys, name, EscapedStream(stream))  # type: ignore[arg-type]


class DescriptionColumn(TextColumn):
    """Column with the descriptions of the tasks, in one line each."""

    def __init__(self) -> None:
        super().__init__("{task.description}", markup=False)

    def render(self, task: Any) -> Text:
        return Text(terminal_text(task.description, limit=100))
