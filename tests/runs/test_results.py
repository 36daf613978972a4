"""The results of an evaluation, as they are printed."""

import pytest

from diffusion_lab.runs.results import comparability_with_papers, print_numbers


@pytest.mark.parametrize(
    ("features", "num_samples", "expected"),
    [
        ("inception", 50_000, "comparable with papers that use the same reference images and features (inception)"),
        ("inception", 200, "not comparable with papers: 200 samples"),
        ("fashion_cnn", 200, "not comparable with papers: features fashion_cnn, 200 samples"),
    ],
)
def test_an_evaluation_states_whether_its_features_and_samples_are_those_of_papers(
    features: str, num_samples: int, expected: str
) -> None:
    likelihood = {"fingerprint": {"num_samples": 10}}
    number = {"fingerprint": {"features": {"name": features}, "num_samples": num_samples}}
    assert comparability_with_papers([number, likelihood]) == expected
    assert comparability_with_papers([likelihood]) is None


@pytest.mark.parametrize(("weights", "name"), [({"kind": "raw"}, "raw"), ({"kind": "ema", "name": "main"}, "main")])
def test_the_printed_settings_include_the_weights(
    weights: dict[str, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = {"num_samples": 10, "weights": weights, "seed": 3}
    record = {"run": "a", "checkpoint": "last.ckpt", "step": 8, "seconds": {}, "peak_memory_gb": 1.0}
    print_numbers(record | {"numbers": [{"name": "bits_bound_test_10", "value": 3.5, "fingerprint": fingerprint}]})
    lines = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines()]
    settings = {line[0].strip(): line[1].strip() for line in lines if len(line) > 1}
    assert (settings["weights"], settings["seed"]) == (name, "3")
