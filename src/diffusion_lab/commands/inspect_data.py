"""Report the content of an image set: sizes, classes, pixel values, constant images and duplicates.

python src/inspect_data.py data=cifar10
python src/inspect_data.py data=class_folders data.path=FOLDER data.resolution=64
python src/inspect_data.py data=fashion_mini near_duplicates.max_ratio=0.5 num_pairs=200

Results: logs/inspect_data/<date>_<time> contains the report, a contact sheet and the duplicates with their file names.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.config.validation import argument_problems, data_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import load as run_loading
from diffusion_lab.runs.setup.splits import require_split

if TYPE_CHECKING:
    from diffusion_lab.data.inspection_report import FoundPair, Split

logger = logging.getLogger(__name__)


def inspect_data(config: DictConfig) -> None:
    """Inspect a split and its overlap with another split, and write a report."""
    _check(config)
    node = run_loading.resolve(
        OmegaConf.create(
            {
                key: config[key]
                for key in ("data", "augmentation", "low_resolution", "masking", "near_duplicates", "seed")
            }
        )
    )
    raise_problems([*data_problems(node.data), *argument_problems(node.near_duplicates, "near_duplicates")])
    search = run_loading.instantiate_node(node.near_duplicates, "near_duplicates")
    store = run_loading.instantiate_node(node.data.store, "data")
    split, other = _load_split(store, "split", config.split), _load_other_split(store, config)

    from diffusion_lab.data import inspection, inspection_report, inspection_sheets
    from diffusion_lab.reporting import image_grids

    try:
        inspected = inspection.inspect(split.images, other.images if other else None, search)
    except ValueError as error:
        raise UserError(str(error)) from error
    folder = Path(config.output_folder)
    pairs = inspection_report.list_pairs(inspected, split, other)
    content = inspection_report.as_dict(inspected, split, other, search)
    content["original_sizes"] = _original_sizes(store, config.split, node.data.get("resolution"))
    inspection_report.write_report(content, pairs, folder, _file_names(store, pairs))
    sheet = inspection_sheets.contact_sheet(split.images, config.num_rows, config.seed)
    image_grids.save_picture(sheet, folder / "contact_sheet.png")
    if pairs:
        image_grids.save_picture(inspection_sheets.duplicate_sheet(pairs, config.num_pairs), folder / "duplicates.png")
    inspection_report.print_report(content)
    print(f"the report is in {terminal_text(folder)}", flush=True)


def _check(config: DictConfig) -> None:
    """Raise UserError for invalid settings, before torch is imported or an image is decoded."""
    for name in ("num_rows", "num_pairs"):
        if type(config[name]) is not int or config[name] < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {config[name]}.")
    if type(config.seed) is not int or not 0 <= config.seed < 2**63:
        raise UserError(f"seed must be a whole number in 0..2^63 - 1, got {config.seed}.")
    if config.split is None:
        raise UserError("`split` must be the name of a split, such as train, got null.")
    if config.against == config.split:
        raise UserError(f"`against` must be a split other than split={config.split}, got {config.against}.")
    if config.near_duplicates is None:
        raise UserError("near_duplicates must not be null; set near_duplicates.max_compared=0 to skip the search.")


def _load_split(store: Any, setting: str, name: Any) -> "Split":
    from diffusion_lab.data.inspection_report import Split

    require_split(str(name), setting, store)
    try:
        images = store.load(name)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    if not len(images):
        raise UserError(f"`split` and `against` must be splits that contain images, got {name} (no images).")
    return Split(name, images)


def _original_sizes(store: Any, split: str, resolution: int) -> "dict[str, Any] | None":
    """Return statistics of the original image sizes; None for a store with its own `load`, or without sizes."""
    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.data.inspection import size_statistics

    return size_statistics(store.original_sizes(split), resolution) if type(store).load is ImageStore.load else None


def _file_names(store: Any, pairs: "Sequence[FoundPair]") -> dict[str, dict[int, str]]:
    """Return the file names of the duplicates, by split and index; empty for a store with its own `load`."""
    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.data.inspection import file_names

    if type(store).load is not ImageStore.load:
        return {}
    numbers: dict[str, set[int]] = {}
    for found in pairs:
        numbers.setdefault(found.first.name, set()).add(found.pair.first)
        numbers.setdefault(found.second.name, set()).add(found.pair.second)
    return {split: file_names(store, split, sorted(own)) for split, own in numbers.items()}


def _load_other_split(store: Any, config: DictConfig) -> "Split | None":
    """Load the split that `against` selects for the comparison with the inspected split; None: no comparison.

    `auto` selects the test split if the test split exists and is not the inspected split.
    """
    if config.against is None or (config.against == "auto" and config.split == "test"):
        return None
    if config.against != "auto":
        return _load_split(store, "against", config.against)
    try:
        return _load_split(store, "against", "test") if "test" in store.splits() else None
    except (UserError, ValueError) as error:
        logger.info("%s is not compared with the split test: %s", config.split, error)
        return None


def main() -> None:
    entry.entry("inspect_data", inspect_data)


if __name__ == "__main__":
    main()
