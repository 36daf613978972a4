"""Availability of data sets on the Hugging Face hub and in its local cache."""

import os
import socket
import urllib.request
from typing import Any
from urllib.parse import urlparse


def is_reachable(timeout: float = 2.0) -> bool:
    """Return whether the hub can be reached.  timeout: in seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy, a direct connection may fail although the hub is reachable
    endpoint: Any = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout).close()
    except OSError:
        return False
    return True


def require_cached(hub_name: str) -> None:
    """Raise FileNotFoundError if a data set is not in the cache of the library `datasets`."""
    # Without this variable, the libraries retry an unreachable hub for 24 seconds before they use their cache. The
    # libraries read the variable when they are first imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    name, _, config = hub_name.partition(":")
    try:
        datasets.load_dataset_builder(name, config or None)
    except (ConnectionError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data.hub_name={hub_name} is not in the local cache and the hub cannot be reached; run once with "
            "network access, or set data.path to a folder with the set's files (train-*.parquet, test-*.parquet)."
        ) from error
