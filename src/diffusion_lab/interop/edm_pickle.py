"""Reading of the .pkl files of NVlabs/edm, which are pickles with source code, without running any of it.

A network is a pickle of calls of `torch_utils.persistence._reconstruct_persistent_obj` with the source code of a class
and the attributes of its object. Here each such call results in a `Node` with the attributes alone. All other names in
the pickle are replaced by inert classes and functions of this module, and a name without a replacement is refused.
Storages of tensors are files of torch.save within the pickle, and are read as such files.
"""

import itertools
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import open_regular
from diffusion_lab.interop.torch_files import load_bytes

MAX_DEPTH, MAX_NODES = 20, 100_000
"""Largest number of nested modules, and of modules in all, of a network."""


class Node:
    """A module in the pickle: the name of its class, and its attributes."""

    kind: str
    attributes: dict[str, Any]

    def __new__(cls, kind: str = "", attributes: Any = None) -> "Node":  # a pickle may build it without __init__
        node = super().__new__(cls)
        node.kind, node.attributes = str(kind), attributes if isinstance(attributes, dict) else {}
        return node

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def children(self) -> dict[str, "Node"]:
        """Return the submodules by name, in order."""
        return {k: v for k, v in self._dict("_modules").items() if isinstance(k, str) and isinstance(v, Node)}

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers by name."""
        both = {**self._dict("_parameters"), **self._dict("_buffers")}
        return {name: value.tensor for name, value in both.items() if isinstance(value, StoredTensor)}

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default if the module has none with this name."""
        return self.attributes.get(name, default)

    def walk(self, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, "Node"]]:
        """Yield the module and all submodules with their paths.  Raises ValueError for too deeply nested modules."""
        if depth > MAX_DEPTH:
            raise ValueError(f"its modules are nested more than {MAX_DEPTH} deep")
        yield prefix, self
        for name, child in self.children().items():
            yield from child.walk(f"{prefix}.{name}".lstrip("."), depth + 1)

    def _dict(self, name: str) -> dict[Any, Any]:
        found = self.attributes.get(name)
        return found if isinstance(found, dict) else {}


class StoredTensor:
    """A tensor in the pickle. It is no `Tensor`, because a pickle can change the state of each object that it makes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes the state of a tensor")


class _PlainDict(dict[Any, Any]):
    """A dict in place of EasyDict."""


class _NumberType:
    """A NumPy dtype in the pickle."""

    code: Any = None

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and flags


class _ModuleDict(Node):
    """torch.nn.ModuleDict, which is pickled as a class and its attributes."""


def _node(meta: Any) -> Node:
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("it has a module without the name of its class")
    return Node(meta["class_name"], meta.get("state"))


def _number(kind: Any, content: Any) -> float | int:
    """Return a NumPy number, which is pickled as its type and its bytes."""
    if getattr(kind, "code", None) not in ("f8", "f4", "i8", "i4") or not isinstance(content, bytes):
        raise pickle.UnpicklingError("it has a NumPy number of an unknown type")
    result: float | int = np.frombuffer(content, dtype=f"<{kind.code}", count=1)[0].item()
    return result


def _encoded(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("it has bytes in an unknown encoding")
    return text.encode("latin1")


def _storage(content: Any) -> Any:
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("it has a storage that is not stored as bytes")
    return load_bytes(content)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """Return a tensor that lies within its storage and does not repeat it."""
    if not isinstance(storage, (torch.storage.TypedStorage, torch.UntypedStorage)):
        raise pickle.UnpicklingError("it has a tensor without a storage")
    flat = torch.tensor([], dtype=getattr(storage, "dtype", torch.uint8))
    flat.set_(getattr(storage, "_untyped_storage", storage))
    if flat.device.type != "cpu":
        raise pickle.UnpicklingError("it has a tensor without values")
    sizes, strides = [int(n) for n in size], [int(n) for n in stride]
    last = int(offset) + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    num_values = int(np.prod(sizes, dtype=np.float64))
    if min([int(offset), *sizes, *strides]) < 0 or (num_values and last >= len(flat)) or num_values > len(flat):
        raise pickle.UnpicklingError("it has a tensor outside of its storage")
    return StoredTensor(flat.as_strided(sizes, strides, int(offset)))


def _parameter(data: Any, *_: Any) -> Any:
    return data


_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _node,
    ("dnnlib.util", "EasyDict"): _PlainDict,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch.nn.modules.container", "ModuleDict"): _ModuleDict,
    ("numpy", "dtype"): _NumberType,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
}
"""What stands for each name that these files contain."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows no names but those of `_REPLACEMENTS`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _REPLACEMENTS:
            raise pickle.UnpicklingError(f"it names {module[:60]}.{name[:60]}, which no file of EDM contains")
        return _REPLACEMENTS[module, name]


def read_pickle(file: Path) -> Node:
    """Return the averaged network of a file of EDM.

    Raises UserError if the file is damaged, names other code, or contains no network.
    """
    try:
        with open_regular(file) as opened:
            content = _load(opened)
    except Exception as error:  # a damaged pickle can lead to errors of any type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} cannot be read as a file of EDM ({reason}).") from error
    network = content.get("ema") if isinstance(content, dict) else content
    if not isinstance(network, Node) or not network.kind:
        raise UserError(f"{file} must contain a network of EDM under the key ema, got {type(network).__name__}.")
    return network


def _load(opened: BinaryIO) -> Any:
    content = _Unpickler(opened).load()
    for node in content.values() if isinstance(content, dict) else [content]:
        if isinstance(node, Node) and next(itertools.islice(node.walk(), MAX_NODES, None), None) is not None:
            raise ValueError(f"it has more than {MAX_NODES:,} modules")
    return content


def named_tensors(network: Node) -> dict[str, Tensor]:
    """Return all parameters and buffers of a network by name."""
    found = ((f"{path}.{name}", tensor) for path, node in network.walk() for name, tensor in node.own_tensors().items())
    return {name.lstrip("."): tensor for name, tensor in found}
