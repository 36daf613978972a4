import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("measuring")


def test_a_ratio_above_1_says_that_ours_is_better_whatever_is_measured(measuring: ModuleType) -> None:
    seconds = measuring.Row("a step", "s", [1.0, 2.0, 9.0], [3.0, 4.0, 5.0], "a peer")
    rate = measuring.Row("loading", "images/s", [100.0], [50.0], "a peer", more_is_better=True)
    assert seconds.ratio == 2.0
    assert rate.ratio == 2.0


def test_jobs_take_turns_and_the_first_round_does_not_count(measuring: ModuleType) -> None:
    order: list[str] = []

    def job(name: str) -> float:
        order.append(name)
        return float(len(order))

    answers = measuring.in_turns({"a": lambda: job("a"), "b": lambda: job("b")}, 2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert answers == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


LOOP = """
import sys, time
from pathlib import Path
from measuring import stands_still

after_step = stands_still()
for k in range(3):
    with open(sys.argv[1], "a") as file:
        file.write(f"{k}")
    print("what a loop prints is not in the way")
    time.sleep(0.01)
    after_step()
raise KeyError("no more steps")
"""


def test_a_loop_stands_still_between_its_steps(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    done.touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    paused = measuring.Paused([sys.executable, "-c", LOOP, str(done)])
    for steps in ("0", "01", "012"):
        assert 0.01 <= paused.advance() < 5
        assert done.read_text() == steps
    assert 1 < paused.peak < 1000
    with pytest.raises(RuntimeError, match="no more steps"):
        paused.advance()
    paused.end()


@pytest.mark.full
def test_the_gpu_script_works_in_small_on_a_cpu(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", "--dry", "--json", str(tmp_path / "numbers.json")]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert all(value >= 0 for value in numbers.values())
    assert {"step, compile: MFU", "sampling, batch 2, eager: images/s", "features: images/s"} <= set(numbers)
