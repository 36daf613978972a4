"""Families of similar tests: the default suite runs some of them, `make test-full` all."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def with_representatives(cases: Mapping[str, Any], representatives: Collection[str]) -> list[ParameterSet]:
    """Return one parameter per case; all except the representatives have the marker `full`."""
    assert set(representatives) <= cases.keys()
    return [
        pytest.param(case, id=name, marks=[] if name in representatives else [pytest.mark.full])
        for name, case in cases.items()
    ]
