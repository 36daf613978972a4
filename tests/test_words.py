"""Identifiers and prose use the terms of the field. Each entry of the two lists has its replacement."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IDENTIFIERS = {
    "answer": "output, estimate or result",
    "answers": "outputs or returns",
    "beside": "the name of the relation",
    "course": "lr_schedule",
    "courses": "lr_schedules",
    "deviation": "std",
    "deviations": "stds",
    "everyone": "all_ranks, or all_gather",
    "inp": "x_t",
    "laid": "memory_format",
    "lay": "memory_format",
    "nobody": "no_rank",
    "said": "message, or output",
    "tell": "log, report or pass",
    "tells": "logs",
    "told": "condition, logged or given",
    "words": "overrides or arguments",
    "x_start": "x_0",
}
"""Word of an identifier (the parts between underscores) -> what to write."""

PHRASES = {
    r"answers?(ed)? (images|classes|the|a|an|what)\b": "outputs or returns",
    r"\b(is|are|was|were|be) told\b": "receives, is conditioned on, or is logged",
    r"\bnot told\b": "does not receive",
    r"\btold (of|how|the|what|in)\b": "passed, logged or reported",
    r"\bsays (so|what|which|how|that)\b": "has, prints or reports",
    r"\bgoes on\b": "resumes or continues",
    r"\bgo on\b": "resume or continue",
    r"\bgoing on\b": "resuming or continuing",
    r"\bcomes? to (its|the same|nothing|no result|an end)\b": "ends, or results in",
    r"\bcame to\b": "resulted in",
    r"\bstands? beside\b": "is next to",
    r"\bbeside (it|them|each other|the|what|x_t|a|an)\b": "next to, in addition to, or compared with",
    r"\bone after the other\b": "sequentially",
    r"\bof its own\b": "its own, or separate",
    r"\bby itself\b": "alone, or automatically",
    r"\bheld in range\b": "clipped",
    r"\bled to (its|their|the|a) class\b": "guided to its class",
    r"\bsmall images?\b": "low-resolution image",
    r"\bnois(ed|es) (images?|condition)\b": "noisy image",
    r"\bthe way (there and back|down|up)\b": "round trip, encoder or decoder",
    r"\bmade small\b": "downsampled",
    r"\benlarg(e|es|ed|ing|ement)\b": "upsample",
    r"\beveryone\b": "all ranks",
    r"\b(the )?first process\b": "rank 0",
    r"\b(the )?other processes\b": "the other ranks",
    r"\ball processes\b": "all ranks",
    r"\bwords of the command line\b": "overrides",
    r"\bcourse of (the|a|its|their) (learning )?rate\b": "learning-rate schedule",
    r"\blaid out\b": "stored in the memory format",
    r"\bends with a sentence\b": "raises an error with a message",
    r"\bin one sentence\b": "in one error message",
    r"\bWho inherits\b": "Subclasses",
    r"\bas it is\b": "unchanged",
    r"\bunlike (ways|numbers|fingerprints|kinds)\b": "different",
    r"\bin like ways\b": "in the same way",
    r"\ba pattern of such\b": "a glob pattern",
    r"\bset right\b|\bput right\b": "correct",
    r"\bwithout a word\b": "silently",
    r"\bfor ever\b": "forever",
    r"\b(normalis|initialis|optimis|quantis|behaviour|colour|centre|grey|neighbour)\w*": "American spelling",
}
"""Regular expression, whatever its case -> what to write."""


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    return sorted(path for path in found if "embedded" not in path.parts and "egg-info" not in str(path))


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each identifier that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def odd_names(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}: write {IDENTIFIERS[word]}"
        for line, name in names_of(path)
        for word in name.strip("_").split("_")
        if word in IDENTIFIERS
    ]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of all prose in a file: comments and texts of Python, comments of YAML, all of Markdown."""
    if path.suffix == ".md":
        yield 1, path.read_text()
    elif path.suffix in (".yaml", ".sh") or path.name == "Makefile":
        lines = enumerate(path.read_text().splitlines(), 1)
        yield from ((number, line.partition("#")[2]) for number, line in lines if "#" in line)
    else:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) and " " in token.string:
                yield token.start[0], token.string


def odd_phrases(path: Path) -> list[str]:
    found, prose = [], list(prose_of(path))
    whole = "\n".join(text for _, text in prose)
    present = {pattern: PHRASES[pattern] for pattern in PHRASES if re.search(pattern, whole, re.IGNORECASE)}
    for first, text in prose:
        for pattern, instead in present.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                line = first + text[: match.start()].count("\n")
                found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}: write {instead}")
    return found


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_identifiers_are_terms_of_the_field(folder: str) -> None:
    assert [odd for path in files(f"{folder}/**/*.py") for odd in odd_names(path)] == []


@pytest.mark.parametrize(
    "pattern", ["src/**/*.py", "conf/**/*.yaml", "examples/**/*", "benchmarks/*", "docs/*.md", "*.md", "Makefile"]
)
def test_prose_reads_like_that_of_the_field(pattern: str) -> None:
    paths = [path for path in files(pattern) if path.suffix in (".py", ".yaml", ".md", ".sh", "")]
    assert [odd for path in paths for odd in odd_phrases(path)] == []


def test_the_lists_find_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text('"""What the network is told."""\n\ndef tell(x: int) -> None:\n    all_answers = x  # goes on\n')
    assert odd_names(path) == [
        "module.py:3: tell: write log, report or pass",
        "module.py:4: all_answers: write outputs or returns",
    ]
    assert [odd.partition(": write")[0] for odd in odd_phrases(path)] == [
        "module.py:1: 'is told'",
        "module.py:4: 'goes on'",
    ]
