"""What runs came to."""

import json
from pathlib import Path

from diffusion_lab.run_tables import write_summary


def test_a_number_that_is_not_finite_is_null_in_the_summary(tmp_path: Path) -> None:
    write_summary(tmp_path, {"steps": 4, "loss": float("nan"), "minutes": 0.5, "distance": None})
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text  # which JSON does not know
    assert json.loads(text) == {"steps": 4, "loss": None, "minutes": 0.5, "distance": None}
