"""The formats that `import` reads, and their detection by the content of a file.

A format is a function of (file, options) that returns an `Imported`. A new format is one module and one line here: in
OF_TENSORS for a state_dict, which `_format_of` detects, and in OF_FOLDERS for a folder.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop import (
    ddpm,
    diffusers_folder,
    dit,
    edm,
    folder_runs,
    openai_classifier,
    openai_unet,
    safetensors_folder,
)
from diffusion_lab.interop.edm_pickle import read_pickle
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.tensors import ForeignTensors
from diffusion_lab.interop.torch_files import is_pickle, is_torch_file, read_torch_file, state_dict_of

AUTO = "auto"


def _adm(tensors: ForeignTensors, options: Options) -> Imported:
    """Read a U-Net or a classifier of guided-diffusion."""
    if openai_classifier.recognizes(set(tensors)):
        return openai_classifier.read(tensors, options)
    return openai_unet.read(tensors, options, rescaled=False)


def _improved_ddpm(tensors: ForeignTensors, options: Options) -> Imported:
    return openai_unet.read(tensors, options, rescaled=True)


OF_TENSORS: dict[str, tuple[str, Callable[[ForeignTensors, Options], Imported]]] = {
    "adm": ("guided-diffusion (format=adm)", _adm),
    "improved_ddpm": ("improved-diffusion (format=improved_ddpm)", _improved_ddpm),
    "ddpm": ("pytorch_diffusion or ddim (format=ddpm)", ddpm.read),
    "dit": ("DiT (format=dit)", dit.read),
}
"""Formats whose files contain a state_dict: name of the layout, for messages, and the function that reads it."""


def _of_tensors(name: str, file: Path, options: Options) -> Imported:
    layout, read = OF_TENSORS[name]
    if not is_torch_file(file):
        raise UserError(f"{file} must be a file of torch.save for format={name}, got a file of another kind.")
    return read(ForeignTensors(state_dict_of(read_torch_file(file), file), file, layout), options)


def _of_edm(name: str, file: Path, options: Options) -> Imported:
    if is_torch_file(file):
        raise UserError(f"{file} must be a .pkl file of EDM for format={name}, got a file of torch.save.")
    if not is_pickle(file):
        raise UserError(f"{file} must be a .pkl file of EDM for format={name}, got a file of another kind.")
    return edm.read(read_pickle(file), file, options, only_ddpmpp=name == "ddpmpp")


FORMATS: dict[str, Callable[[str, Path, Options], Imported]] = {
    **dict.fromkeys(OF_TENSORS, _of_tensors),
    "ddpmpp": _of_edm,
    "edm": _of_edm,
}
"""Format of a file -> function of (format, file, options)."""

OF_FOLDERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, Options], Imported]]] = {
    "safetensors": (safetensors_folder.recognizes, folder_runs.read_export),
    "diffusers": (diffusers_folder.recognizes, folder_runs.read_diffusers),
}
"""Formats of folders: function that returns whether a folder has this format, and the function that reads it."""


def read_foreign(source: Path, format_name: str, options: Options) -> tuple[str, Imported]:
    """Return the format of a file or folder and its network.

    format_name: key of FORMATS, or `auto` to detect it.
    Raises UserError for another format, and for a file that does not have it.
    """
    known = [*FORMATS, *OF_FOLDERS]
    if format_name not in (AUTO, *known):
        raise UserError(f"format must be {', '.join(known)} or {AUTO}, got {format_name}.")
    if source.is_dir() or format_name in OF_FOLDERS:
        return _read_folder(source, format_name, options)
    if format_name != AUTO:
        return format_name, FORMATS[format_name](format_name, source, options)
    name, tensors = detected_format(source)
    if tensors is None:
        return name, FORMATS[name](name, source, options)
    layout, read = OF_TENSORS[name]
    return name, read(ForeignTensors(tensors, source, layout), options)


def _read_folder(source: Path, format_name: str, options: Options) -> tuple[str, Imported]:
    """Return the format of a folder and its network.  Raises UserError for a file, and for a format of files."""
    if not source.is_dir():
        raise UserError(f"`source` must be a folder for format={format_name}, got {source}.")
    if format_name in FORMATS:
        raise UserError(f"`source` must be a file for format={format_name}, got the folder {source}.")
    for name, (recognizes, read) in OF_FOLDERS.items():
        if format_name == name or (format_name == AUTO and recognizes(source)):
            return name, read(source, options)
    raise UserError(
        f"`source` must be a checkpoint file of other code, or a folder of {' or '.join(OF_FOLDERS)}, got {source}."
    )


def detected_format(source: Path) -> tuple[str, dict[str, Tensor] | None]:
    """Return the format of a file, and its tensors if they were read.  Raises UserError if it has no known format."""
    if not is_torch_file(source):
        if is_pickle(source):
            return "edm", None
        raise UserError(
            "`source` must be a file of weights (of torch.save, such as *.pt, *.pth or *.ckpt, or a .pkl file of EDM) "
            f"or a folder of {' or '.join(OF_FOLDERS)}, got {source}, which is neither."
        )
    tensors = state_dict_of(read_torch_file(source), source)
    name = _format_of(set(tensors))
    if name is None:
        shown = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"`source` must have a layout of {', '.join(OF_TENSORS)}, got {source} with the tensors {shown[:200]}; "
            "format=NAME names what its layout should have."
        )
    return name, tensors


def _format_of(names: set[str]) -> str | None:
    """Return the format of a state_dict by the names of its tensors."""
    if openai_unet.recognizes(names):
        return "improved_ddpm" if openai_unet.is_strided(names) else "adm"
    if openai_classifier.recognizes(names):
        return "adm"
    if ddpm.recognizes(names):
        return "ddpm"
    return "dit" if dit.recognizes(names) else None
