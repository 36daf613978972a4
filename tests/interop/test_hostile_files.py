"""Damaged, foreign and hostile files of each format: one sentence each, and no code in them is run."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Options
from support.foreign_ddpm import DDPM
from support.foreign_dit import DiTSizes, with_positions
from support.foreign_edm import EDM, Persistent, pickled, preconditioned, tree, with_filters
from support.foreign_openai import OpenAI, random_tensors

FOLDER = "FOLDER_OF_A_PAYLOAD"
"""Name of the folder that a payload creates."""


class Payload:
    """An object whose pickle creates a folder in the working directory when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, (FOLDER,)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(file: Path, form: str, options: Options) -> str:
    """The message of the error, which is one sentence, and nothing has been run."""
    with pytest.raises(UserError) as error:
        read_foreign(file, form, options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 600
    assert not Path(FOLDER).exists()
    return message


TYPED = Options(resolution=16, num_heads=2, given=frozenset({"schedule"}))
DIT = DiTSizes(8, 2, 64, 1, 2, num_classes=5)
SMALL: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "adm": (lambda: random_tensors(OpenAI(16, 32, (1, 2), 1, (8,)).shapes()), "input_blocks.0.0.weight"),
    "improved_ddpm": (
        lambda: random_tensors(OpenAI(16, 32, (1, 2), 1, (8,), updown=False).shapes()), "input_blocks.0.0.weight"
    ),
    "ddpm": (lambda: random_tensors(DDPM(16, 32, (1, 2), 1, (8,)).shapes()), "conv_in.weight"),
    "dit": (
        lambda: with_positions(DIT, random_tensors(DIT.shapes())), "x_embedder.proj.weight"
    ),
}  # fmt: skip
"""Format -> function that returns the tensors of a small network, and the name of one of them."""


@cache
def tensors_of(form: str) -> dict[str, Tensor]:
    return SMALL[form][0]()


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    return packed.getvalue()


def with_wrong_byte(content: bytes, tensor: Tensor) -> bytes:
    place = content.index(tensor.numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


OF_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor], str], bytes], str]] = {
    "an empty file": (lambda t, name: b"", "must be a file of torch.save"),
    "a text": (lambda t, name: b"not a checkpoint\n" * 99, "must be a file of torch.save"),
    "half of a file": (lambda t, name: saved(t)[: len(saved(t)) // 2], "must be a file of torch.save"),
    "half of an earlier format": (
        lambda t, name: saved(t, _use_new_zipfile_serialization=False)[:-9999], "cannot be read as a checkpoint"
    ),
    "a wrong bit": (lambda t, name: with_wrong_byte(saved(t), t[name]), "the checksum of"),
    "compressed records": (lambda t, name: compressed(saved(t)), "must not be compressed"),
    "a payload": (lambda t, name: saved(t | {"x": Payload()}), "which could run code"),
    "a payload in an earlier format": (
        lambda t, name: saved(t | {"x": Payload()}, _use_new_zipfile_serialization=False), "which could run code"
    ),
    "a pickle with a payload": (lambda t, name: pickle.dumps(Payload()), "must be a file of torch.save"),
    "a list of numbers": (lambda t, name: saved([1, 2, 3]), "must contain a state_dict"),
    "a tensor alone": (lambda t, name: saved(t[name]), "must contain a state_dict"),
    "a name that is no text": (lambda t, name: saved(t | {7: t[name]}), "must contain a state_dict"),
    "a missing tensor": (lambda t, name: saved({k: v for k, v in t.items() if k != name}), "has no"),
    "a surplus tensor": (lambda t, name: saved(t | {"logvar": torch.ones(3)}), "but it also has logvar"),
    "a transposed tensor": (lambda t, name: saved(t | {name: t[name].transpose(0, 1).contiguous()}), "must"),
    "a tensor of another rank": (lambda t, name: saved(t | {name: t[name][0]}), "dimensions"),
    "a tensor without values": (lambda t, name: saved(t | {name: t[name][:0]}), "dimensions"),
    "a value that is not finite": (lambda t, name: saved(t | {name: t[name] * float("inf")}), "finite values only"),
    "whole numbers": (lambda t, name: saved(t | {name: t[name].int()}), "dense tensor of floats"),
    "a sparse tensor": (lambda t, name: saved(t | {name: t[name].to_sparse()}), "cannot be read"),
    "a tensor that repeats its memory": (
        lambda t, name: saved(t | {name: torch.ones(1).expand(10**5, 10**5)}), "as large as its memory"
    ),
    "a tensor without memory": (lambda t, name: saved(t | {name: torch.empty(9, device="meta")}), "dense tensor"),
}  # fmt: skip


def damages() -> Iterator[Any]:
    """Each format with each damage. All formats read files with the same functions, which one format tests."""
    in_names = ("a missing tensor", "a surplus tensor", "a transposed tensor", "a tensor of another rank")
    for form in SMALL:
        for damage in OF_TENSORS:
            repeats = form != "adm" and damage not in in_names
            yield pytest.param(form, damage, marks=[pytest.mark.full] if repeats else [], id=f"{form}, {damage}")


@pytest.mark.parametrize(("form", "damage"), list(damages()))
def test_a_damaged_or_hostile_file_of_tensors_is_refused_in_one_error_message(form: str, damage: str) -> None:
    name = SMALL[form][1]
    write, message = OF_TENSORS[damage]
    Path("model.pt").write_bytes(write(tensors_of(form), name))
    assert message in refusal(Path("model.pt"), form, TYPED)


@pytest.mark.parametrize("form", SMALL)
def test_the_undamaged_files_of_these_tests_are_read(form: str) -> None:
    torch.save(tensors_of(form), "model.pt")
    assert read_foreign(Path("model.pt"), form, TYPED)[1].weights


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("adm", "output_blocks.9999.0.in_layers.2.weight"),
        ("adm", "middle_block.1.qkv.more"),
        ("improved_ddpm", "input_blocks.7.0.op.weight"),
        ("ddpm", "down.99.block.99.conv1.weight"),
        ("dit", "blocks.9999.attn.qkv.weight"),
    ],
)
def test_a_tensor_of_a_layer_that_no_network_has_is_refused_quickly(form: str, name: str) -> None:
    torch.save(tensors_of(form) | {name: torch.ones(32, 32, 3, 3)}, "model.pt")
    refusal(Path("model.pt"), form, TYPED)


@pytest.mark.parametrize("form", SMALL)
def test_the_format_of_another_network_is_refused(form: str) -> None:
    torch.save(tensors_of("dit" if form != "dit" else "ddpm"), "model.pt")
    refusal(Path("model.pt"), form, TYPED)


def test_a_folder_is_no_file_of_weights() -> None:
    Path("model").mkdir()
    assert "must be a file for format=adm, got the folder model" in refusal(Path("model"), "adm", TYPED)
    assert "must be a checkpoint file of other code, or a folder of safetensors or diffusers, got model" in refusal(
        Path("model"), "auto", TYPED
    )


def test_a_device_and_a_pipe_are_refused_without_waiting() -> None:
    os.mkfifo("model.pt")
    assert "cannot be read" in refusal(Path("model.pt"), "auto", TYPED)
    assert "cannot be read" in refusal(Path("/dev/zero"), "auto", TYPED)


NET = EDM(8, 128, (1,), 1, ())


@cache
def tensors_of_net() -> dict[str, Tensor]:
    return with_filters(random_tensors(NET.shapes()))


def edm(change: Callable[[Any], object] = lambda model: None, tensors: dict[str, Tensor] | None = None) -> bytes:
    """A file of EDM whose modules a function has changed.  tensors: tensors that replace those of these names."""
    model = tree(NET, tensors_of_net() | (tensors or {}))
    change(model)
    return pickled(preconditioned(NET, model))


class Storage:
    """An object that is pickled as a storage with the given bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.content,)


class Rebuilt:
    """An object that is pickled as a tensor of a storage."""

    def __init__(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, size, stride, False, None)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def with_weight(weight: Any) -> Callable[[Any], object]:
    """Function that replaces a tensor of a network."""

    def change(model: Any) -> None:
        model.attributes["_modules"]["map_layer0"].attributes["_parameters"]["weight"] = weight

    return change


def storage() -> Any:
    memory = torch.ones(4).untyped_storage()
    kind: Any = torch.storage.TypedStorage
    return kind(wrap_storage=memory, dtype=torch.float32, _internal=True)


def nested(depth: int) -> Callable[[Any], object]:
    """Function that replaces a module by modules in modules."""

    def change(model: Any) -> None:
        for _ in range(depth):
            model.attributes["_modules"] = {"map_layer0": type(model)("Linear", _modules=model.attributes["_modules"])}

    return change


def shared(model: Any) -> None:
    """Put a module twice into each of fifteen modules, so that there are 2^15 paths to it."""
    child = type(model)("Linear")
    for _ in range(18):
        child = type(model)("Linear", _modules={"a": child, "b": child})
    model.attributes["_modules"]["x"] = child


def in_itself(model: Any) -> None:
    model.attributes["_modules"]["x"] = model


def first_block(model: Any, **attributes: Any) -> None:
    model.attributes["_modules"]["enc"]._modules["8x8_block0"].attributes.update(attributes)


OF_EDM: dict[str, tuple[Callable[[], bytes], str]] = {
    "a payload": (lambda: pickle.dumps({"ema": Payload()}), f"it names {os.mkdir.__module__}.mkdir"),
    "a payload among the modules": (lambda: edm(with_weight(Payload())), "mkdir"),
    "a payload in a nested storage": (lambda: edm(with_weight(Storage(pickle.dumps(Payload())))), "cannot be read"),
    "a payload in a nested file": (
        lambda: edm(with_weight(Storage(saved({"x": Payload()}, _use_new_zipfile_serialization=False)))),
        "cannot be read",
    ),
    "a payload in a nested archive": (lambda: edm(with_weight(Storage(saved({"x": Payload()})))), "cannot be read"),
    "a compressed nested archive": (lambda: edm(with_weight(Storage(compressed(saved(torch.ones(4)))))), "compressed"),
    "a function of Python": (
        lambda: b"\x80\x02cbuiltins\neval\n(S'__import__(\"os\").mkdir(\"x\")'\ntR.", "builtins.eval"
    ),
    "half of a file": (lambda: edm()[: len(edm()) // 2], "cannot be read"),
    "an empty file": (lambda: b"", "must be a .pkl file of EDM"),
    "a text": (lambda: b"not a pickle", "must be a .pkl file of EDM"),
    "a number": (lambda: pickle.dumps({"ema": 7}), "must contain a network of EDM"),
    "a missing tensor": (lambda: edm(lambda m: m.attributes["_modules"].pop("map_layer1")), "has no"),
    "a surplus tensor": (lambda: edm(tensors={"map_layer2.weight": torch.ones(2, 2)}), "also has map_layer2.weight"),
    "another shape": (lambda: edm(tensors={"map_layer1.weight": torch.ones(2, 2)}), "must result in the shape"),
    "values that are not finite": (lambda: edm(tensors={"map_layer1.bias": torch.ones(512) / 0}), "finite"),
    "a tensor outside of its storage": (
        lambda: edm(with_weight(Rebuilt(storage(), 0, (512, 128), (128, 1)))), "outside of its storage"
    ),
    "a tensor that repeats its storage": (
        lambda: edm(with_weight(Rebuilt(storage(), 0, (10**6, 10**6), (0, 0)))), "outside of its storage"
    ),
    "modules in modules": (lambda: edm(nested(40)), "nested more than"),
    "a module in itself": (lambda: edm(in_itself), "nested more than"),
    "a module in many places": (lambda: edm(shared), "more than 100,000 modules"),
    "another gain": (lambda: edm(lambda m: first_block(m, skip_scale=0.3)), "skip_scale must be"),
    "a gain that is a text": (lambda: edm(lambda m: first_block(m, skip_scale="1")), "skip_scale of UNetBlock must be"),
    "another network": (lambda: pickled(preconditioned(NET, Persistent("Generator"))), "got Generator"),
}  # fmt: skip


@pytest.mark.parametrize("damage", OF_EDM)
def test_a_damaged_or_hostile_file_of_edm_is_refused_in_one_error_message(damage: str) -> None:
    write, message = OF_EDM[damage]
    Path("network.pkl").write_bytes(write())
    assert message in refusal(Path("network.pkl"), "edm", Options())


def test_the_source_code_in_a_file_of_edm_is_not_run() -> None:
    Path("network.pkl").write_bytes(edm())
    assert b"the source code in the pickle has been run" in edm()
    assert read_foreign(Path("network.pkl"), "auto", Options())[0] == "edm"
