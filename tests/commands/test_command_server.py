"""Commands of the tests, which are forks of a process of the tests, behave like new processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.commands import run

PROBE = """
import gc, json, logging, os, sys, threading, warnings
import numpy as np

def raised(category):
    try:
        warnings.warn("text", category)
    except Warning as error:
        return type(error).__name__

def log_of_zero():
    with np.errstate(divide="warn"):
        try:
            return str(np.log(np.zeros(1))[0])
        except Warning as error:
            return type(error).__name__

print(json.dumps({
    "warnings": [raised(kind) for kind in (UserWarning, FutureWarning, RuntimeWarning, DeprecationWarning)],
    "numpy": log_of_zero(),
    "gc": gc.isenabled(),
    "errors": sys.stderr.errors,
    "finders": [type(finder).__name__ for finder in sys.meta_path if "pytest" in type(finder).__module__],
    "handlers": len(logging.getLogger().handlers),
    "level": logging.getLogger().level,
    "hooks": [sys.unraisablehook is sys.__unraisablehook__, threading.excepthook is threading.__excepthook__],
    "stdin": sys.stdin.read(),
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "variable": os.environ.get("PROBE"),
}), flush=True)
print("\\udcff", file=sys.stderr)
os.kill(os.getpid(), 9)
"""


def test_a_forked_command_has_the_state_of_a_new_process(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    forked = run(str(script), "a", "b c", cwd=tmp_path, PROBE="1")
    command = [sys.executable, "-W", "error::UserWarning", str(script), "a", "b c"]
    environment = {**os.environ, "PROBE": "1", "PYTHONUNBUFFERED": ""}
    new = subprocess.run(
        command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    states: list[dict[str, Any]] = [json.loads(each.stdout) for each in (forked, new)]
    assert states[0] == states[1]
    assert states[0]["warnings"] == ["UserWarning", None, None, None]
    assert (forked.returncode, new.returncode) == (-9, -9)
    assert forked.stderr.splitlines()[-1] == new.stderr.splitlines()[-1] == "\\udcff"


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("raise ValueError", 1), ("sys.exit('text')", 1), ("", 0)]
)
def test_the_exit_status_is_that_of_python(end: str, status: int, tmp_path: Path) -> None:
    script = tmp_path / "end.py"
    script.write_text(f"import sys\n{end}\n")
    assert run(str(script)).returncode == status
