"""YAML of other people: read as OmegaConf reads it, or refused before it can crash the process."""

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffusion_lab.config.plain_yaml import MAX_LEVELS, NotPlainError, load_yaml

SCALARS = [
    "1e-3", "1E5", "1.5e+3", "1_000", "0x1F", "0o17", "017", "1:30", "1:30.5", ".5", "5.", "+.inf", "-.INF", ".nan",
    "~", "null", "", "yes", "on", "true", "FALSE", "2026-11-30", "'1e-3'", '"a\\nb"', "a b", "${x}",
    "[1, 2.0, a]", "{a: 1, b: [x, {c: null}]}", "|\n  two\n  lines", "=", "<<x",
]  # fmt: skip
NUMBERS = st.text("0123456789+-._eExX:abinf", min_size=1, max_size=8).filter(lambda text: not text.endswith(":"))


@given(st.one_of(st.sampled_from(SCALARS), NUMBERS))
def test_values_are_those_of_omegaconf(scalar: str) -> None:
    text = f"first: {scalar}\nsecond: [{'x' if scalar.startswith('|') else scalar}]\n"
    try:
        expected = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, ValueError):
        with pytest.raises(ValueError, match=r"\w"):
            load_yaml(text)
    else:
        assert repr(load_yaml(text)) == repr(expected)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{<<: {a: 1}, a: 2}", {"a": 2}),
        ("{1: a, 1.0: b, x: c}", {1: "b", "x": "c"}),
        ("yes: 1\non: 2", {True: 2}),
        ("", None),
        ("# nothing", None),
        ("a", "a"),
        ("[1, [2]]", [1, [2]]),
    ],
)
def test_values_of_other_forms(text: str, values: object) -> None:
    assert load_yaml(text) == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 200_000 + "]" * 200_000, "contains more than 100 nested lists and dicts"),
        ("a:\n  " + "- " * 200_000 + "1", "contains more than 100 nested lists and dicts"),
        ("[" + "a," * 200_001 + "]", "contains more than 200,000 values"),
        ("a: &x 1\nb: *x", "repeats the node x by an alias"),
        ("a: !!python/name:os.system", "contains the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: " + "9" * 301, "contains a number of more than 300 digits"),
        ("%TAG !a! tag:a\n---\na: 1", "has a line that begins with %"),
    ],
)
def test_texts_that_take_much_or_could_run_code_are_refused_with_what_they_do(text: str, problem: str) -> None:
    with pytest.raises(NotPlainError, match=f"^{problem}"):
        load_yaml(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("b: 1\na: 1\na: 2", "found duplicate key a"),
        ("".join(f"k{k}: 1\n" for k in range(20_000)) + "k19999: 2", "found duplicate key k19999"),
        ("? [1, 2]\n: 1", "unhashable key"),
        ("? null\n: 1", "found the key None"),
        ("a: [", "did not find expected node content"),
        ("a: 0b_", "invalid literal for int"),
        ('a: "\\UFFFFFFFF"', "invalid Unicode character escape|int|range"),
    ],
)
def test_other_texts_raise_a_value_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        load_yaml(text)
    assert type(raised.value) is ValueError


@given(st.dictionaries(st.text(st.characters()), st.text(st.characters()) | st.floats(allow_nan=False) | st.integers()))
def test_what_omegaconf_writes_is_read(content: dict[str, str | float | int]) -> None:
    assert load_yaml(OmegaConf.to_yaml(content)) == content


def test_parts_of_file_names_that_are_not_text_are_read() -> None:
    content = {"name": "a\udcffb", "symbol": "\U0001f600"}
    assert load_yaml(OmegaConf.to_yaml(content)) == content


def test_the_largest_number_of_nested_lists_is_read() -> None:
    text = "[" * MAX_LEVELS + "]" * MAX_LEVELS
    assert str(load_yaml(text)) == text
