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


def test_the_tables_in_the_docs_are_rendered_from_the_stored_numbers(measuring: ModuleType) -> None:
    run = importlib.import_module("run")
    record = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert run.page(record) in (ROOT / "docs" / "benchmarks.md").read_text()


def test_a_ratio_above_1_means_that_ours_is_better_for_times_and_for_rates(measuring: ModuleType) -> None:
    seconds = measuring.Row("a step", "s", [1.0, 2.0, 9.0], [3.0, 4.0, 5.0], "a peer")
    rate = measuring.Row("loading", "images/s", [100.0], [50.0], "a peer", more_is_better=True)
    assert seconds.ratio == 2.0
    assert rate.ratio == 2.0


def test_jobs_are_interleaved_and_the_warm_up_round_is_discarded(measuring: ModuleType) -> None:
    order: list[str] = []

    def job(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = measuring.interleave({"a": lambda: job("a"), "b": lambda: job("b")}, 2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


LOOP = """
import sys, time
from pathlib import Path
from measuring import pause_after_each_step

after_step = pause_after_each_step()
for k in range(3):
    with open(sys.argv[1], "a") as file:
        file.write(f"{k}")
    print("the output of the loop is not part of its replies")
    time.sleep(0.01)
    after_step()
raise KeyError("no more steps")
"""


def test_a_paused_loop_runs_one_step_at_a_time(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    done.touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    loop = measuring.PausedLoop([sys.executable, "-c", LOOP, str(done)])
    for steps in ("0", "01", "012"):
        assert 0.01 <= loop.advance() < 5
        assert done.read_text() == steps
    assert 1 < loop.peak < 1000
    with pytest.raises(RuntimeError, match="no more steps"):
        loop.advance()
    loop.stop()


@pytest.mark.full
def test_the_gpu_script_runs_on_a_cpu_with_small_sizes(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", "--dry", "--json", str(tmp_path / "numbers.json")]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert all(value >= 0 for value in numbers.values())
    assert {"step, compile: MFU", "sampling, batch 2, eager: images/s", "features: images/s"} <= set(numbers)
