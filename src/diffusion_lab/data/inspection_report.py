"""What an inspection came to: numbers as JSON and CSV, tables on the terminal."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffusion_lab.data.duplicates import NearDuplicates, Pair
from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import Inspection, class_name

MAX_ROWS = 30
"""Classes in the terminal's table; all are in report.json."""

PAIR_COLUMNS = ("kind", "split", "image", "class", "other_split", "other_image", "other_class")


@dataclass(frozen=True)
class Split:
    """A named part of a set."""

    name: str
    images: Images


@dataclass(frozen=True)
class Found:
    """A pair and where its two images are."""

    pair: Pair
    first: Split
    second: Split

    @property
    def classes(self) -> list[str]:
        places = ((self.first.images, self.pair.first), (self.second.images, self.pair.second))
        return [class_name(images, int(images.label[number])) for images, number in places]


def pairs(inspection: Inspection, split: Split, other: Split | None) -> list[Found]:
    """All pairs of an inspection: within the split, then between it and the other."""
    own = [*inspection.duplicates.same_bytes, *inspection.duplicates.near]
    found = [Found(pair, split, split) for pair in own]
    if inspection.overlap is not None and other is not None:
        between = [*inspection.overlap.same_bytes, *inspection.overlap.near]
        found += [Found(pair, split, other) for pair in between]
    return found


def as_dict(inspection: Inspection, split: Split, other: Split | None, search: NearDuplicates) -> dict[str, Any]:
    """Names and numbers for `report.json`; the pairs themselves are in `duplicates.csv`."""
    content = {"split": split.name, **asdict(inspection)}
    near = pairs(inspection, split, None)
    content["duplicates"] = {
        "same_bytes": len(inspection.duplicates.same_bytes),
        "same_bytes_groups": len({pair.first for pair in inspection.duplicates.same_bytes}),
        "near_pairs": len(inspection.duplicates.near),
        "pairs_of_two_classes": sum(len(set(found.classes)) > 1 for found in near),
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
    return {**content, "near_means": meaning(search), "near_duplicates": asdict(search)}


def meaning(search: NearDuplicates) -> str:
    """One sentence: which pairs are called near duplicates."""
    return (
        f"near: brightness, contrast and mirroring aside, a pair differs by at most {search.max_ratio:g} of what one "
        f"of them differs from its neighbour number {search.neighbour}"
    )


def write_numbers(content: dict[str, Any], found: Sequence[Found], folder: Path) -> None:
    """Writes `report.json` and `duplicates.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    with (folder / "duplicates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*PAIR_COLUMNS, "correlation", "ratio"])
        for one in found:
            (name, other_name), pair = one.classes, one.pair
            where = one.first.name, pair.first, name, one.second.name, pair.second, other_name
            writer.writerow([pair.kind, *where, f"{pair.correlation:.4f}", f"{pair.ratio:.4f}"])


def show(content: dict[str, Any]) -> None:
    """The numbers of a report as tables on the terminal."""
    # Names of classes are shown as they are: rich would take "[a]" for a style and ":b:" for a picture.
    width = None if Console().is_terminal else 120
    wide = Console(width=width, highlight=False, markup=False, emoji=False)
    size = f"{content['channels']} x {content['height']} x {content['width']}"
    wide.print(f"{content['split']}: {content['num_images']:,} images of {size}")
    wide.print(_values_table(content["values"]))
    if content["class_counts"]:
        wide.print(_class_table(content["class_counts"], content["num_images"]))
    for line in _lines(content):
        wide.print(line, soft_wrap=True)


def _values_table(values: Sequence[dict[str, Any]]) -> Table:
    table = Table("channel", "min", "max", "mean", "std", "pixels at 0", "pixels at 255")
    for name, row in zip(("grey",) if len(values) == 1 else ("red", "green", "blue"), values, strict=True):
        shares = f"{row['share_0']:.2%}", f"{row['share_255']:.2%}"
        table.add_row(
            name, str(row["smallest"]), str(row["largest"]), f"{row['mean']:.2f}", f"{row['std']:.2f}", *shares
        )
    return table


def _class_table(counts: dict[str, int], num_images: int) -> Table:
    table = Table("class", "images", "share")
    for name, number in list(counts.items())[:MAX_ROWS]:
        table.add_row(name, f"{number:,}", f"{number / num_images:.2%}")
    if len(counts) > MAX_ROWS:
        table.add_row(f"and {len(counts) - MAX_ROWS} more", f"{min(counts.values()):,} to {max(counts.values()):,}", "")
    return table


def _lines(content: dict[str, Any]) -> Iterator[str]:
    own, overlap = content["duplicates"], content["overlap"]
    yield f"constant images: {len(content['constant']):,}"
    yield (
        f"duplicates: {own['same_bytes']:,} further copies of the same bytes, of {own['same_bytes_groups']:,} images, "
        f"and {own['near_pairs']:,} near pairs; "
        f"{own['pairs_of_two_classes']:,} of the pairs have two classes"
    )
    if overlap is not None:
        yield (
            f"of {overlap['num_images']:,} images of {overlap['split']}, {overlap['same_bytes']:,} are also in "
            f"{content['split']}, and {overlap['near']:,} nearly"
        )
    yield content["near_means"]
    for name, part, size in (
        (content["split"], own, content["num_images"]),
        *([(overlap["split"], overlap, overlap["num_images"])] if overlap is not None else []),
    ):
        if part["num_compared"] < size:
            yield f"near pairs were looked for among {part['num_compared']:,} of the {size:,} images of {name} alone"
