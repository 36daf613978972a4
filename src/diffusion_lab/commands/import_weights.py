"""Import weights of other code as a run folder, which is sampled and evaluated like any other.

python src/import_weights.py 64x64_diffusion.pt output=logs/train/adm_64      # a published file needs no settings
python src/import_weights.py model.pt format=adm schedule=cosine resolution=64 head_channels=64 data=imagenet64
python src/import_weights.py edm-cifar10-32x32-cond-vp.pkl output=logs/train/edm
python src/import_weights.py DiT-XL-2-256x256.pt autoencoder=VAE_FOLDER
python src/import_weights.py FOLDER output=logs/train/ddpm     # of `diffusers`, or of export format=safetensors
python src/import_weights.py --help schedule

All settings of train describe how the network was trained and is sampled: schedule, data, sampler, variance.
Results: the run folder has config.yaml, checkpoints/last.ckpt, and provenance.json, which names the source with its
SHA-256. `verify` compares the imported network with the original. An imported run has no state of its training.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.config.overrides import given_overrides, override_key, quote
from diffusion_lab.config.program import command_line
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.find import portable_path, shell_word
from diffusion_lab.runs.imported_run import describe_source, require_new, write_run

if TYPE_CHECKING:
    from diffusion_lab.interop.imported import Imported, Options

OF_THE_COMMAND = ("hydra", "logs", "trust", "take_over", "sweep", "resume", "fork", "run_folder")
"""Settings of the command itself, in addition to those in its file, which do not describe the network."""

CHANGEABLE = ("model.blocks.dropout", "model.blocks.checkpointing", "model.dropout", "model.checkpointing",
              "model.sinusoids.time_scale")  # fmt: skip
"""Settings of the network that do not depend on its file."""


def import_weights(config: DictConfig) -> Path:
    """Read a foreign checkpoint, write a run folder, and return it."""
    if OmegaConf.is_missing(config, "source"):
        raise UserError(f"`source` must be given ({command_line('import_weights')} FILE), got no value.")
    source = Path(str(config.source)).expanduser()
    if not source.exists():
        raise UserError(f"`source` must be a file or folder, got {source}, which does not exist.")
    given = _described_by_user()
    options = _options(config, [override_key(override) for override in given])
    if config.output is not None:
        require_new(Path(str(config.output)).expanduser().absolute())

    from diffusion_lab.interop.formats import read_foreign

    name, imported = read_foreign(source, str(config.format), options)
    folder = _folder(config, source, imported.command)
    overrides = [*imported.overrides, *imported.network_overrides(), *given]
    described = describe_source(source) | _provenance(name, imported, overrides)
    write_run(
        folder, imported.command, overrides, imported.weights, step=imported.step, described=described,
        nodes=imported.nodes, names=imported.class_names,
    )  # fmt: skip
    _report(name, imported, folder)
    return folder


def _described_by_user() -> list[str]:
    """Return the typed overrides that describe the network: all but those of this command.

    Raises UserError for settings of the network that its file determines.
    """
    own = {*map(str, OmegaConf.load(CONF / "import_weights.yaml")), *OF_THE_COMMAND}
    given = [text for text in given_overrides() if re.split(r"[.@/]", override_key(text))[0] not in own]
    for override in given:
        if (key := override_key(override)).partition(".")[0] == "model" and key not in CHANGEABLE:
            raise UserError(
                f"{key} must not be given, because the imported file determines its network, got {override}; "
                "num_heads, head_channels and resolution are the settings that a file does not contain."
            )
    return given


def _options(config: DictConfig, given: list[str]) -> "Options":
    """Return what the command line states about the file.  Raises UserError for a value that is not accepted."""
    from diffusion_lab.interop.imported import Options

    names = ("num_heads", "head_channels", "attention_order", "resolution", "autoencoder")
    num_timesteps = config.schedule.get("num_timesteps", 1000)
    if type(num_timesteps) is not int or num_timesteps < 1:
        raise UserError(f"schedule.num_timesteps must be a whole number of at least 1, got {num_timesteps}.")
    values: dict[str, Any] = {name: config[name] for name in names}
    return Options(**values, given=frozenset(given), num_timesteps=num_timesteps)


def _folder(config: DictConfig, source: Path, command: str) -> Path:
    """Return the new run folder.  Raises UserError if it exists."""
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", source.resolve().stem).strip("-.") or "imported"
    chosen = Path(config.logs) / command / name if config.output is None else Path(str(config.output)).expanduser()
    require_new(chosen.absolute())
    return chosen.absolute()


def _provenance(name: str, imported: "Imported", overrides: list[str]) -> dict[str, Any]:
    num_parameters = sum(tensor.numel() for tensor in imported.weights.values())
    described = {"format": name, "num_parameters": num_parameters, "conventions": imported.conventions}
    return {**described, "command": imported.command, "overrides": overrides, "verification": []}


def _report(name: str, imported: "Imported", folder: Path) -> None:
    num_parameters = sum(tensor.numel() for tensor in imported.weights.values())
    print(f"format      {name}: {num_parameters:,} parameters in {len(imported.weights)} tensors")
    print(f"run folder  {portable_path(folder)}")
    print("next:")
    run = f"run={shell_word(portable_path(folder))}"
    if imported.command == "train":
        print(f"  {command_line('sample')} {run}")
    against = "diffusers" if name == "diffusers" else "FILE.npz"
    if name != "safetensors":
        print(f"  {command_line('verify')} {run} against={against}", flush=True)


def with_source(arguments: list[str]) -> list[str]:
    """Return command-line arguments in which the first one, if it is a path, is the setting `source`."""
    if not arguments or arguments[0].startswith("-") or re.match(r"[+~]*[\w./@]+=", arguments[0]):
        return arguments
    return [f"source={quote(arguments[0])}", *arguments[1:]]


def main() -> None:
    sys.argv[1:] = with_source(sys.argv[1:])
    entry.entry("import_weights", import_weights)


if __name__ == "__main__":
    main()
