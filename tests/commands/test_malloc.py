import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from diffusion_lab.commands import malloc

if sys.argv[1] == "kept":
    malloc.keep_freed()
layers = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)])
x = torch.randn(32, 16, 40, 40)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        layers(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_fetched(how: str, **environment: str) -> int:
    """By five steps, after five before them."""
    command = [sys.executable, "-c", STEPS, how]
    return int(subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_step_fetches_no_memory_from_the_system_that_the_step_before_it_has_freed() -> None:
    assert pages_fetched("kept") < 5_000
    assert pages_fetched("as it is") > 20_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_persons_own_settings_of_malloc_stay() -> None:
    assert pages_fetched("kept", MALLOC_TRIM_THRESHOLD_="1000000") > 20_000
