"""The model card of an exported network: Markdown with a header that the Hugging Face Hub reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_lab.reporting.text import terminal_text

GRID = "samples.png"
"""Name of the image grid next to the card."""


@dataclass(frozen=True)
class Result:
    """A metric value.  fingerprint: the settings with which it was measured."""

    name: str
    value: float | None
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True)
class ModelCard:
    """What a model card states.

    title: heading.  license: identifier of the license of the weights; None if it is not stated.
    library: library that loads the weights, for the header.
    summary: sentences about the network and its weights.  usage: language and text of each code block, in order.
    notes: sentences about differences between the exported network and the run.
    data, recipe, sampling: facts by name.  overrides: overrides of the training command.
    results: metric values.  has_grid: whether there is an image grid next to the card.
    """

    title: str
    license: str | None
    library: str
    summary: Sequence[str]
    usage: Sequence[tuple[str, str]]
    notes: Sequence[str]
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    sampling: Mapping[str, Any]
    overrides: Sequence[str]
    results: Sequence[Result]
    has_grid: bool

    def text(self) -> str:
        """Return the card as Markdown."""
        grid = [f"![Samples]({GRID})"] if self.has_grid else []
        parts = [
            self._header(),
            f"# {_plain(self.title)}",
            *map(_plain, self.summary),
            *grid,
            "## Usage",
            *(f"```{language}\n{text.rstrip()}\n```" for language, text in self.usage),
            *([_list(self.notes)] if self.notes else []),
            "## Data",
            _table(self.data),
            "## Recipe",
            _table(self.recipe),
            *(["Overrides of the training command:", _code("\n".join(self.overrides))] if self.overrides else []),
            "## Sampling",
            _table(self.sampling),
            "## Results",
            self._results(),
            "## License",
            _plain(self.license) if self.license else "The license of the weights is not stated.",
        ]
        return "\n\n".join(parts) + "\n"

    def _header(self) -> str:
        lines = [f"license: {json.dumps(self.license)}"] if self.license else []
        lines += [f"library_name: {self.library}", "pipeline_tag: unconditional-image-generation", "tags:"]
        return "\n".join(["---", *lines, "- diffusion-lab", "- diffusion", "---"])

    def _results(self) -> str:
        if not self.results:
            return "No evaluation of these weights is part of the export."
        rows = [f"| {_cell(each.name)} | {_number(each.value)} |" for each in self.results]
        prints = [f"{_plain(each.name)}:\n\n{_code(json.dumps(each.fingerprint, indent=2))}" for each in self.results]
        table = "\n".join(["| metric | value |", "|---|---|", *rows])
        how = "Values are comparable only if their fingerprints, the settings of the measurement, are equal:"
        return "\n\n".join([table, how, *prints])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(sentence)}" for sentence in sentences)


def _code(text: str) -> str:
    """Return an indented code block, which no text can end."""
    return "\n".join(f"    {terminal_text(line)}" for line in text.splitlines())


def _plain(text: Any) -> str:
    """Return text in one line without control characters and without HTML."""
    return terminal_text(str(text)).replace("<", "&lt;")


def _cell(value: Any) -> str:
    return _plain(value).replace("|", "\\|")
