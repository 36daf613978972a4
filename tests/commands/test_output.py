"""Output that nobody reads any more does not change how a command ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from diffusion_lab.commands.output import outlive_reader
outlive_reader()
for number in range(20_000):
    print("line", number, file=getattr(sys, sys.argv[1]), flush=number % 100 == 0)
open(sys.argv[2], "w").write("done")
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_goes_on_if_the_reader_of_its_output_has_ended(stream: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", SCRIPT, stream, str(tmp_path / "end")]
    assert subprocess.run(command, **{stream: writer}).returncode == 0  # type: ignore[call-overload]
    os.close(writer)
    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_command_goes_on_if_the_disk_of_its_output_file_is_full(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "stdout", str(tmp_path / "end")]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full).returncode == 0
    assert (tmp_path / "end").read_text() == "done"


def test_the_first_lines_of_a_help_text_are_read_without_an_error() -> None:
    command = f"{sys.executable} src/evaluate.py --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("Diffusion Lab: ")
    assert done.stderr == ""
