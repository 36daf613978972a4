"""Statistics files from other people: each is read, or refused with one sentence; none takes unbounded memory."""

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_lab.evaluation import statistics_files
from diffusion_lab.evaluation.reference import FileReference, _read_cached
from support.fake_features import StandIn
from support.time_limit import time_limit


def array(value: Any, dtype: Any = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value, dtype=dtype), allow_pickle=True)
    return buffer.getvalue()


def header(shape: str, dtype: str = "<f8") -> bytes:
    """Return an array file without content that states a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def write(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


GOOD = {"mu": array(np.zeros(12)), "sigma": array(np.eye(12))}
MEMBERS = {
    "object": ({"mu": array([{}], object)}, "mu must contain numbers, got object"),
    "text": ({"mu": array(["a"] * 12)}, "mu must contain numbers, got <U1"),
    "complex": ({"sigma": array(np.eye(12) * 1j)}, "sigma must contain numbers, got complex128"),
    "huge shape": ({"mu": header("(1000000000000,)")}, "mu must have at most .* GB, got 8,000.0 GB"),
    "shape without content": ({"mu": header("(1000000,)")}, "must have the 8,000,000 bytes of its shape, got 0"),
    "negative shape": ({"mu": header("(-12,)")}, "mu must have 1 dimensions"),
    "many dimensions": ({"mu": header("(1, 1, 12)")}, "mu must have 1 dimensions, got the shape"),
    "content beyond the shape": ({"mu": array(np.zeros(12)) + bytes(10**8)}, "bytes of its shape, got 100,000,096"),
    "long floats": ({"mu": array(np.zeros(12), np.longdouble)}, "mu must contain numbers, got float128"),
    "rows of NaN": ({"rows": array(np.full((5, 12), np.nan))}, "got NaN or infinity in rows"),
    "no rows": ({"rows": array(np.zeros((0, 12)))}, "must contain at least 2 rows, got 0"),
    "a negative count": ({"count": array(-5)}, "must contain a count of at least 0, got -5"),
    "a huge count": (
        {"count": array(2**64 - 1, np.uint64)},
        "must contain a count of at least 0, got 18446744073709551615",
    ),
    "nested header": ({"mu": header("(" * 500)}, "cannot be read as .npz"),
    "count of text": ({"count": array("5")}, "count must contain numbers"),
    "counts": ({"count": array([5, 5])}, "count must have 0 dimensions"),
    "rows of other features": ({"rows": array(np.zeros((5, 7)))}, r"must contain rows \[M, 12\], got \[5, 7\]"),
    "about without JSON": ({"about": array("{")}, "about must be a JSON object"),
    "about without keys": ({"about": array('{"split": "train"}')}, "about must be a JSON object with features"),
    "nested about": ({"about": array("[" * 10**5)}, "about must be a JSON object"),
    "split of escape codes": (
        {
            "about": array(
                json.dumps(
                    {"split": "\x1b[31m", "size": 1}
                    | dict.fromkeys(("features", "output", "weights_sha256", "fingerprint"), "a")
                )
            )
        },
        "name of the split must consist of letters",
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_an_array_that_is_not_the_expected_one_is_refused(name: str, tmp_path: Path) -> None:
    members, message = MEMBERS[name]
    with time_limit(20), pytest.raises(ValueError, match=message) as error:
        FileReference(write(tmp_path / "a.npz", GOOD | members))
    assert str(error.value).startswith(f"reference={tmp_path / 'a.npz'}")
    assert "\n" not in str(error.value)


def test_arrays_of_another_byte_order_are_read(tmp_path: Path) -> None:
    members = {
        "mu": array(np.arange(12), ">f4"),
        "sigma": array(np.eye(12), ">f8"),
        "rows": array(np.ones((5, 12)), ">f4"),
    }
    reference = FileReference(write(tmp_path / "a.npz", members | {"count": array(5)}))
    found = reference.feature_sets(StandIn(), {"pooled": True}, None)["pooled"]  # type: ignore[arg-type]
    assert found.mean.tolist() == list(range(12))
    assert found.rows is not None
    assert found.rows.sum() == 60


def test_all_arrays_together_fit_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_files, "memory_budget", lambda: 2000)
    members = GOOD | {"rows": array(np.zeros((10, 12)))}
    with pytest.raises(ValueError, match=r"rows must have at most 0\.0 GB"):
        FileReference(write(tmp_path / "a.npz", members))
    assert FileReference(write(tmp_path / "b.npz", GOOD)).name == "b"


@pytest.mark.parametrize(
    "members", [{"mu": array(np.zeros(12), np.longdouble)}, {"rows": array(np.full((5, 12), np.nan))}]
)
def test_a_cached_file_with_other_numbers_is_not_used(members: dict[str, bytes], tmp_path: Path) -> None:
    good = GOOD | {"count": array(5), "rows": array(np.ones((5, 12)))}
    assert _read_cached(write(tmp_path / "a.npz", good), True) is not None
    assert _read_cached(write(tmp_path / "a.npz", good | members), True) is None


def encrypted(file: Path) -> None:
    write(file, GOOD)
    content = bytearray(file.read_bytes())
    for signature, position in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + position] |= 1
    file.write_bytes(content)


KINDS: dict[str, Callable[[Path], object]] = {
    "an encrypted archive": encrypted,
    "an array": lambda file: file.write_bytes(array(np.zeros(12))),
    "a pickle": lambda file: file.write_bytes(b"\x80\x04."),
    "an empty file": lambda file: file.touch(),
    "a method of compression": lambda file: file.write_bytes(
        write(file, GOOD).read_bytes().replace(b"\x08\0", b"\x63\0")
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / "a.npz")
    with time_limit(20), pytest.raises(ValueError, match=r"^reference=.* cannot be read as \.npz: .*\.$"):
        FileReference(tmp_path / "a.npz")


def test_a_fifo_or_a_device_is_no_statistics_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("fifo.npz", "zero.npz"):
        with time_limit(20), pytest.raises(ValueError, match=r"must be a split or an existing statistics file"):
            FileReference(tmp_path / name)


@pytest.mark.parametrize("num_files", [20, pytest.param(300, marks=pytest.mark.full)])
def test_a_mutated_file_is_read_or_refused_with_one_sentence(num_files: int, tmp_path: Path) -> None:
    file, num_refused = tmp_path / "a.npz", 0
    np.savez(file, mu=np.zeros(12), sigma=np.eye(12), count=20, rows=np.zeros((20, 12), np.float32))
    original = file.read_bytes()
    for seed in range(num_files):
        generator = random.Random(seed)
        content = bytearray(original)
        for _ in range(generator.choice((1, 3, 30))):
            content[generator.randrange(len(content))] = generator.randrange(256)
        file.write_bytes(content[: generator.choice((len(content), generator.randrange(len(content))))])
        try:
            with time_limit(20):
                reference = FileReference(file)
                found = reference.feature_sets(StandIn(), {"pooled": False}, None)  # type: ignore[arg-type]
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017
            assert str(error).startswith("reference=")  # noqa: PT017
            num_refused += 1
        else:
            assert found["pooled"].mean.shape == (12,)
    assert num_files / 3 < num_refused <= num_files
