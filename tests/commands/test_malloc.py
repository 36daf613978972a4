import os
import platform
import subprocess
import sys

import pytest

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


def num_page_faults(**environment: str) -> list[int]:
    """Return the page faults of three steps in a new process, first with the default settings of malloc, then ours."""
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE)
    return [int(line) for line in done.stdout.split()]


def test_a_step_reuses_the_memory_that_the_previous_step_freed() -> None:
    default, kept = num_page_faults()
    assert default > 4_000
    assert kept < 1_000


@pytest.mark.full
def test_malloc_settings_of_the_user_are_unchanged() -> None:
    default, kept = num_page_faults(MALLOC_TRIM_THRESHOLD_="1000000")
    assert min(default, kept) > 4_000
