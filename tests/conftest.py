import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import diffusion_lab.config  # noqa: F401  (resolvers, for tests that compose)

# At the end: where something is in both places, the environment's own comes first.
sys.path.append(str(Path(sys.prefix, "peers")))

# derandomize: the suite answers the same on every run. No deadline: a busy machine is not a failure.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded sets of the suite, and of the processes that it starts, are kept apart from the person's own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path_factory.mktemp("image_cache")))
        yield
