"""How the running command was started: with a script in src/, with the console command, or with `python -m`."""

import os
import re
import shlex
import sys
from pathlib import Path

from diffusion_lab.paths import IS_CHECKOUT, ROOT

TYPED = {"import_weights": "import"}
"""Module of a command -> its name on the command line, where it is not the name of the module."""

PROGRAM_VARIABLE = "DIFFUSION_LAB_PROGRAM"
"""Environment variable with the start of the command line (such as "diffusion-lab") if no script was used.

Child processes inherit it, so that the messages of a run in a sweep contain the command line that the user knows.
"""


def typed_name(command: str) -> str:
    """Return the name of a command on the command line: reconstruct-ema for the module reconstruct_ema."""
    return TYPED.get(command, command.replace("_", "-"))


def command_line(command: str) -> str:
    """Return the start of the command line of `command`, in the form in which the user started the running command.

    For example "python src/train.py", "diffusion-lab train" or "python -m diffusion_lab train".
    """
    program = os.environ.get(PROGRAM_VARIABLE)
    if program:
        return f"{program} {typed_name(command)}"
    script = Path("src") / f"{command}.py"
    is_elsewhere = IS_CHECKOUT and Path.cwd() != ROOT and not script.is_file()
    return f"python {shlex.quote(str(ROOT / script)) if is_elsewhere else script}"


def as_typed(example: str) -> str:
    """Return an example of the documentation, such as "python src/train.py", in the form of the running command."""
    program = os.environ.get(PROGRAM_VARIABLE)
    if not program:
        return example
    example = re.sub(r"python src/(\w+)\.py", lambda found: command_line(found[1]), example)
    return re.sub(r"src/(\w+)\.py", lambda found: f"-m diffusion_lab {typed_name(found[1])}", example)


def interpreter_arguments() -> tuple[str, ...]:
    """Return the arguments of Python that start the running command again: its script, or -m and its module.

    Lightning starts the other ranks of a run with the same arguments.
    """
    spec = sys.modules["__main__"].__spec__
    return (str(Path(sys.argv[0]).resolve()),) if spec is None else ("-m", spec.name)
