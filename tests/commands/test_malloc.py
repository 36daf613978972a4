import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diffusion_lab.commands import malloc

STEPS = """
import resource
import torch
from diffusion_lab.commands import malloc

layers = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)])
x = torch.randn(16, 16, 40, 40)

def num_page_faults():
    for _ in range(2):  # the first three steps are a warm-up
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            layers(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(num_page_faults())
malloc.keep_freed_memory()
print(num_page_faults())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")


def num_page_faults() -> list[int]:
    """Return the page faults of three steps in a new process, first with the default settings of malloc, then ours."""
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.full
def test_a_step_reuses_the_memory_that_the_previous_step_freed() -> None:
    default, kept = num_page_faults()
    assert default > 4_000
    assert kept < 1_000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_malloc_settings_of_the_user_are_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda number, value: calls.append((number, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=1000000")
    malloc.keep_freed_memory()
    assert calls == []
    monkeypatch.delenv(name)
    malloc.keep_freed_memory()
    assert calls == [(-1, malloc.TRIM_THRESHOLD_BYTES), (-3, malloc.MMAP_THRESHOLD_BYTES)]
