"""The console command `diffusion-lab`, which runs one of the commands: diffusion-lab train data=cifar10.

This module does not import Hydra or torch, so that the list of commands appears immediately.
"""

import ast
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import diffusion_lab
from diffusion_lab.commands.output import outlive_reader

COMMANDS = (
    *("train", "train_classifier", "prepare", "sample", "edit", "evaluate", "compare", "export"),
    *("sweep", "reconstruct_ema", "import_weights", "verify", "inspect_data", "show_schedule"),
)
"""Modules in this folder that are commands, in the order of the help text.

The command train_fashion_cnn writes to the package folder, so it is only a script of the repository.
"""

TYPED = {"import_weights": "import"}
"""Module of a command -> its name on the command line, as in `config.program`, whose import loads Hydra."""

COMPLETION = ("-sc", "--shell-completion")
"""Flags of Hydra that install the shell completion and query it."""


def main(program: str = "diffusion-lab") -> None:
    """Run the command that the first command-line argument names.

    program: start of the command line, for messages.
    """
    outlive_reader()
    os.environ["DIFFUSION_LAB_PROGRAM"] = program  # read by config.program, whose import loads Hydra
    if not sys.flags.safe_path and os.getcwd() not in sys.path:  # as with python -m, which starts the other ranks
        sys.path.insert(0, os.getcwd())
    first, *others = sys.argv[1:] or ["--help"]
    name = module_name(first)
    if name in COMMANDS:
        _run(name, others, program)
    elif first in ("-h", "--help"):
        print(help_text(program))
    elif first == "--version":
        print(diffusion_lab.__version__)
    elif first in COMPLETION:
        _complete(others, program)
    else:
        _refuse(first)


def typed_name(name: str) -> str:
    """Return the name of a command on the command line: reconstruct-ema for the module reconstruct_ema."""
    return TYPED.get(name, name.replace("_", "-"))


def module_name(typed: str) -> str:
    """Return the module of a command from its name on the command line."""
    return next((name for name, short in TYPED.items() if short == typed), typed.replace("-", "_"))


def help_text(program: str) -> str:
    """Return a list of the commands with the first line of each module's docstring."""
    rows = [f"  {typed_name(name):<18}{_summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            str(diffusion_lab.__doc__).splitlines()[0],
            "",
            f"usage: {program} COMMAND [OVERRIDES]",
            "",
            *rows,
            "",
            f"{program} COMMAND --help shows the settings and examples of a command.",
        ]
    )


def _summary(name: str) -> str:
    """Return the first line of a module's docstring.  The module is not imported, because the import is slow."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(source))).splitlines()[0]


def _run(name: str, arguments: list[str], program: str) -> None:
    """Run a command in this process."""
    module = import_module(f"diffusion_lab.commands.{name}")
    sys.argv = [program, *arguments]
    # Lightning starts the other ranks, and a sweep its runs, with `python -m` and the name in this specification.
    sys.modules["__main__"].__spec__ = module.__spec__
    module.main()


def _complete(arguments: list[str], program: str) -> None:
    """Install the shell completion, or print the completions of the command line in COMP_LINE.

    Hydra completes the overrides of a command. The line that Hydra reads does not contain the name of the command.
    """
    line = os.environ.get("COMP_LINE", "")
    found = re.match(r"\s*\S+\s+(\S+)(?=\s)", line)
    name = module_name(found[1]) if found else ""
    if not any(argument.startswith("query=") for argument in arguments):
        _run("train", [COMPLETION[0], *arguments], program)
    elif not found:
        print(" ".join(map(typed_name, COMMANDS)))
    elif name in COMMANDS and name != "sweep":  # not a Hydra command
        os.environ["COMP_LINE"] = "diffusion-lab" + line[found.end() :]  # Hydra removes the first word
        _run(name, [COMPLETION[0], *arguments], program)


def _refuse(name: str) -> None:
    """Exit with an error message for a command that does not exist."""
    from diffusion_lab.config.validation import suggestion

    commands = [typed_name(command) for command in COMMANDS]
    sys.exit(f"error: the command must be one of {', '.join(commands)}, got {name}{suggestion(name, commands)}.")
