"""Compare the network of an imported run with the original network.

python src/verify.py print_script=adm > witness.py             # run it where the original code can be imported
python src/verify.py run=logs/train/RUN against=witness.npz
python src/verify.py run=logs/train/RUN against=witness.npz tolerance=1e-5
python src/verify.py run=logs/train/RUN against=diffusers       # a folder of `diffusers` needs no script

The script writes random inputs, the outputs of the original network, and a DDIM trajectory to an .npz file.
Results: the largest relative differences are printed, and added to provenance.json in the folder of the run.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import Target, find_place, find_run, run_of
from diffusion_lab.runs.imported_run import provenance, without_autoencoder, write_provenance
from diffusion_lab.runs.load import is_classifier_config, load_weights, resolve
from diffusion_lab.runs.setup.trained_config import load_trained_config

if TYPE_CHECKING:
    from diffusion_lab.interop.witness import Witness


def verify(config: DictConfig) -> dict[str, float]:
    """Print a script, or compare a run with a witness; return the largest relative differences by name.

    Raises UserError if a difference is above the tolerance, after it has been written to the provenance.
    """
    from diffusion_lab.interop.witness_scripts import script

    if config.print_script is not None:
        print(script(str(config.print_script)), end="")
        return {}
    for name, example in (("run", "run=logs/train/RUN"), ("against", "against=witness.npz")):
        if config[name] is None:
            raise UserError(f"`{name}` must be given ({example}), got no value; print_script=adm prints a script.")
    if not isinstance(config.tolerance, (int, float)) or not config.tolerance > 0:
        raise UserError(f"tolerance must be a number above 0, got {config.tolerance}.")
    target = find_target(config)
    trained = resolve(load_trained_config(target.folder))
    module = load_weights(without_autoencoder(trained), target.checkpoint)
    is_classifier = is_classifier_config(trained)
    witness, origin = _witness(str(config.against), target.folder, module)

    from diffusion_lab.interop.witness import differences

    network = module.network if is_classifier else module.sampled_network()
    found = differences(network, witness, module.process, None if is_classifier else module.prediction)
    _record(target.folder, origin | {"largest_relative_differences": found, "tolerance": float(config.tolerance)})
    for name, value in found.items():
        print(f"{name:<20} {value:.2e}", flush=True)
    if (largest := max(found.values())) > config.tolerance:
        raise UserError(
            f"the network of `run` must equal the original up to tolerance={config.tolerance}, got a relative "
            f"difference of {largest:.2e}."
        )
    return found


def find_target(config: DictConfig) -> Target:
    """Return the checkpoint of the setting `run`, which may be a run of train or of train_classifier."""
    try:
        find_place("run", config.run, run_of("train"))
    except UserError:
        return find_run("run", config.run, "train_classifier")
    return find_run("run", config.run, "train")


def _witness(against: str, folder: Path, module: Any) -> tuple["Witness", dict[str, Any]]:
    """Return the witness that `against` names, and its entry in the provenance.

    Raises UserError for a name of no file and of no library whose networks can be loaded in this process.
    """
    from diffusion_lab.interop.computed_witness import computed_witness
    from diffusion_lab.interop.originals import ORIGINALS
    from diffusion_lab.interop.witness import Witness

    if against in ORIGINALS:
        if not (source := str(provenance(folder).get("source", ""))):
            raise UserError(f"`run` must be an imported run for against={against}, got {folder}.")
        return computed_witness(ORIGINALS[against](Path(source)), module), {"against": against}
    file = Path(against).expanduser()
    if not file.is_file():
        others = "".join(f", or {name}" for name in ORIGINALS)
        raise UserError(
            f"`against` must be an .npz file that a script of print_script has written{others}, got {against}."
        )
    witness = Witness.read(file)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return witness, {"against": str(file.resolve()), "sha256": digest}


def _record(folder: Path, entry_: dict[str, Any]) -> None:
    """Add a comparison to the provenance of an imported run. Other runs have none."""
    if content := provenance(folder):
        earlier = content.get("verification")
        content["verification"] = [*(earlier if isinstance(earlier, list) else []), entry_]
        write_provenance(folder, content)


def main() -> None:
    entry.entry("verify", verify)


if __name__ == "__main__":
    main()
