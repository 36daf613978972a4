"""Reading of the files that Weights & Biases has written for a run, to find out which metrics a killed process lost.

W&B collects 32 KiB of records before it writes them to `run-ID.wandb`. A killed process loses what was collected, but
not the image and table files, which are written when they are logged.
"""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 1 << 15, 7
"""Bytes of a block, and bytes before the content of a record: a checksum, a size and a kind (the format of LevelDB)."""

WHOLE, LAST_PART = 1, 4
"""Kinds of records: complete in one block, and the last part of a record that is divided among several blocks."""


def last_step(folder: Path, run_id: str) -> tuple[int, frozenset[str]]:
    """Return the last step in the offline files of a run, and the names of the metrics that were logged at this step.

    folder: run folder. Returns -1 and no names if the files contain no step.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    steps: dict[int, frozenset[str]] = {}
    for path in folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"):
        for content in _records(path.read_bytes()):
            record = Record()
            try:
                record.ParseFromString(content)
            except DecodeError:  # W&B continued to write after the disk was full
                break
            if record.HasField("history"):
                names = (item.nested_key[0] if item.nested_key else item.key for item in record.history.item)
                step = record.history.step.num
                steps[step] = steps.get(step, frozenset()) | frozenset(names)
    last = max(steps, default=-1)
    return last, steps.get(last, frozenset())


def media(folder: Path, run_id: str, steps: range) -> Iterator[tuple[int, str, Any]]:
    """Yield step, name and content of each image and table that was logged in some steps of a run."""
    import wandb

    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}/files/media/*/*")):
        match = re.fullmatch(r"(.+)_(\d+)_[0-9a-f]+\.(png|table\.json)", path.name)
        if match is None or int(match[2]) not in steps:
            continue
        if match[3] == "png":
            yield int(match[2]), match[1], [wandb.Image(str(path))]
        else:
            table = json.loads(path.read_text())
            yield int(match[2]), match[1], wandb.Table(columns=table["columns"], data=table["data"])


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the complete records of a file; its end may be missing."""
    position, content = HEADER, b""  # the file begins with a header of the same size
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER + size
        if kind == 0 or position > len(data):
            return
        content += data[position - size : position]
        if kind in (WHOLE, LAST_PART):
            yield content
            content = b""
