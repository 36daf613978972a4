"""Seeded changes of files and of plain content, as damage and attackers make them."""

import random
from collections.abc import Iterator
from typing import Any

TOKENS = (
    b"\x00", b"\xff", b"\n", b"---\n", b"!!python/object/apply:os.mkdir [x]\n", b"&a [*a]\n", b"${oc.env:HOME}",
    b"{" * 50, b"[" * 50, b"- ", b": ", b",", b"\"", b"'", b"1e999", b"-1", b"nan", b"\x1b[31m", b"../" * 5,
    b"/dev/zero", b"null",
)  # fmt: skip

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.5, 10**30, float("nan"), float("inf"), "", "x", "x" * 2000, [], {}, [[[]]], ["a", 1],
    "../../x", "/dev/zero", "/nowhere/x", "\x1b[31m", "[/x]", "${oc.env:HOME}", "${model}", "???", "=1+1",
    {"a": {"b": [None]}}, {"_target_": 3}, {"_target_": "os.mkdir", "path": "MARK"},
    {"_target_": "diffusion_lab.samplers.DDIM"},
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to three random changes."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 1, 4, 50, 1000)))
        change = rng.randrange(6)
        if change == 0:
            data = data[:start]
        elif change == 1:
            data = data[:start] + data[stop:]
        elif change == 2:
            data = data[:stop] + data[start:stop] + data[stop:]
        elif change == 3:
            data = data[:start] + rng.choice(TOKENS) + data[start:]
        elif change == 4:
            data = data[:start] + rng.randbytes(stop - start) + data[stop:]
        else:
            data = data[:start] + bytes(255 - byte for byte in data[start : start + 1]) + data[start + 1 :]
    return data


def changed(content: Any, rng: random.Random) -> Any:
    """Return a copy of plain nested content in which one to three random parts are replaced, removed or renamed."""
    content = _copy(content)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return rng.choice(ODD_VALUES)
        node, key = rng.choice(places)
        change = rng.randrange(8)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(("x", "", "_target_", "[/x]", "a.b", "__class__"))] = node.pop(key)
        elif change == 2:
            node[key] = [_copy(node[key]), _copy(node[key])]
        elif change == 3:
            other, name = rng.choice(places)
            if isinstance(other, dict) and name not in other:
                continue
            node[key] = _copy(other[name]) if not isinstance(other, list) or name < len(other) else None
        else:
            node[key] = _copy(rng.choice(ODD_VALUES))
    return content


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(child) for key, child in node.items()}
    return [_copy(child) for child in node] if isinstance(node, list) else node


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each nested list or dict with each of its keys."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(child)
