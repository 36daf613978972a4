"""Inspection report: JSON and CSV files, and tables on the terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from diffusion_lab.data.duplicates import NearDuplicates, Pair
from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import Inspection, class_name
from diffusion_lab.files.image_folders import counted
from diffusion_lab.reporting.console import Console
from diffusion_lab.reporting.csv_files import write_csv
from diffusion_lab.reporting.text import terminal_text

MAX_ROWS = 30
"""Largest number of rows of the class table on the terminal; report.json contains all classes."""

LONGEST_NAME = 200
"""Largest number of characters of a class name on the terminal; a longer name loses its middle."""

PAIR_COLUMNS = (
    "kind", "split", "image", "class", "other_split", "other_image", "other_class", "correlation", "ratio",
    "file", "other_file",
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """A named split of a set."""

    name: str
    images: Images


@dataclass(frozen=True)
class FoundPair:
    """A pair of duplicates and the splits of its two images."""

    pair: Pair
    first: Split
    second: Split

    @property
    def classes(self) -> list[str]:
        """Class names of the two images."""
        both = ((self.first.images, self.pair.first), (self.second.images, self.pair.second))
        return [class_name(images, int(images.label[number])) for images, number in both]


def list_pairs(inspection: Inspection, split: Split, other: Split | None) -> list[FoundPair]:
    """List all pairs of an inspection: pairs within the split, then pairs between the split and the other split."""
    within = [*inspection.duplicates.same_bytes, *inspection.duplicates.near]
    pairs = [FoundPair(pair, split, split) for pair in within]
    if inspection.overlap is not None and other is not None:
        between = [*inspection.overlap.same_bytes, *inspection.overlap.near]
        pairs += [FoundPair(pair, split, other) for pair in between]
    return pairs


def as_dict(inspection: Inspection, split: Split, other: Split | None, search: NearDuplicates) -> dict[str, Any]:
    """Return the content of `report.json`, with the number of duplicate pairs, which `duplicates.csv` lists."""
    content = {"split": split.name, **asdict(inspection)}
    pairs = list_pairs(inspection, split, None)
    content["duplicates"] = {
        "same_bytes": len(inspection.duplicates.same_bytes),
        "same_bytes_groups": len({pair.first for pair in inspection.duplicates.same_bytes}),
        "near_pairs": len(inspection.duplicates.near),
        "pairs_of_two_classes": sum(len(set(pair.classes)) > 1 for pair in pairs),
        "num_compared": inspection.duplicates.num_compared,
    }
    if (overlap := inspection.overlap) is not None and other is not None:
        content["overlap"] = {
            "split": other.name,
            "num_images": overlap.num_others,
            "same_bytes": len(overlap.same_bytes),
            "near": len({pair.second for pair in overlap.near}),
            "near_pairs": len(overlap.near),
            "num_compared": overlap.num_others_compared,
        }
    return {**content, "near_means": describe(search), "near_duplicates": asdict(search)}


def describe(search: NearDuplicates) -> str:
    """Return one sentence that defines near duplicates."""
    return (
        f"near duplicates: pairs whose difference (ignoring brightness, contrast and horizontal flips) is at most "
        f"{search.max_ratio:g} times the difference between one of the two images and its k-th nearest neighbor "
        f"(k = {search.neighbor})"
    )


def write_report(
    content: dict[str, Any], pairs: Sequence[FoundPair], folder: Path, files: Mapping[str, Mapping[int, str]]
) -> None:
    """Write `report.json` and `duplicates.csv`.  files: split -> index of an image -> its file name."""
    folder.mkdir(parents=True, exist_ok=True)
    # backslashreplace writes bytes of names that are not UTF-8 as \udcff, as in JSON
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8", errors="backslashreplace")
    rows = []
    for found in pairs:
        (name, other_name), pair = found.classes, found.pair
        images = found.first.name, pair.first, name, found.second.name, pair.second, other_name
        both = ((found.first.name, pair.first), (found.second.name, pair.second))
        names = [files.get(split, {}).get(number, "") for split, number in both]
        rows.append([pair.kind, *images, f"{pair.correlation:.4f}", f"{pair.ratio:.4f}", *names])
    write_csv(folder / "duplicates.csv", PAIR_COLUMNS, rows)


def print_report(content: dict[str, Any]) -> None:
    """Print the content of `report.json` as tables."""
    width = None if Console().is_terminal else 120
    console = Console(width=width, highlight=False)
    size = f"{content['channels']} x {content['height']} x {content['width']}"
    console.print(f"{content['split']}: {content['num_images']:,} images of {size}")
    console.print(_values_table(content["values"]))
    if content["class_counts"]:
        console.print(_class_table(content["class_counts"], content["num_images"]))
    for line in _summary(content):
        console.print(line, soft_wrap=True)


def _values_table(values: Sequence[dict[str, Any]]) -> Table:
    table = Table("channel", "min", "max", "mean", "std", "pixels at 0", "pixels at 255")
    for name, row in zip(("gray",) if len(values) == 1 else ("red", "green", "blue"), values, strict=True):
        fractions = f"{row['share_0']:.2%}", f"{row['share_255']:.2%}"
        table.add_row(
            name, str(row["smallest"]), str(row["largest"]), f"{row['mean']:.2f}", f"{row['std']:.2f}", *fractions
        )
    return table


def _class_table(counts: dict[str, int], num_images: int) -> Table:
    table = Table(Column("class", overflow="fold"), "images", "percentage")
    for name, count in list(counts.items())[:MAX_ROWS]:
        table.add_row(terminal_text(name, LONGEST_NAME), f"{count:,}", f"{count / num_images:.2%}")
    if len(counts) > MAX_ROWS:
        table.add_row(f"and {len(counts) - MAX_ROWS} more", f"{min(counts.values()):,} to {max(counts.values()):,}", "")
    return table


def _summary(content: dict[str, Any]) -> Iterator[str]:
    own, overlap = content["duplicates"], content["overlap"]
    if (sizes := content.get("original_sizes")) is not None:
        ranges = ", ".join(f"{side} {_range(**sizes[side])}" for side in ("width", "height"))
        others = ", including images that are not used" if sizes["num_images"] > content["num_images"] else ""
        yield (
            f"original sizes of {counted(sizes['num_images'], 'image')}{others}: {ranges}; "
            f"{counted(sizes['num_below_resolution'], 'image')} with a shorter side below "
            f"data.resolution={sizes['resolution']}"
        )
    yield f"constant images: {len(content['constant']):,}"
    copies = f"{own['same_bytes']:,} exact {'copy' if own['same_bytes'] == 1 else 'copies'}"
    yield (
        f"duplicates within {content['split']}: {copies} of "
        f"{counted(own['same_bytes_groups'], 'image')}, and {counted(own['near_pairs'], 'pair')} of near duplicates; "
        f"exact and near pairs of images from different classes: {own['pairs_of_two_classes']:,}"
    )
    if overlap is not None:
        yield (
            f"duplicates between {content['split']} and {overlap['split']}: of "
            f"{counted(overlap['num_images'], 'image')} of {overlap['split']}, exact copies: "
            f"{overlap['same_bytes']:,}, near duplicates: {overlap['near']:,}"
        )
    found = [part[kind] for part in (own, overlap or {}) for kind in ("same_bytes", "near_pairs") if part]
    if any(found):
        yield "duplicates.csv lists each of these pairs with the files of both images, and duplicates.png shows pairs"
    yield content["near_means"]
    for name, part, size in (
        (content["split"], own, content["num_images"]),
        *([(overlap["split"], overlap, overlap["num_images"])] if overlap is not None else []),
    ):
        if part["num_compared"] < size:
            yield f"only {part['num_compared']:,} of the {size:,} images of {name} were searched for near duplicates"


def _range(smallest: int, median: int, largest: int) -> str:
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest} (median {median})"
