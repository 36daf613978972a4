"""The results of an evaluation, as they are printed."""

import pytest

from diffusion_lab.runs.results import comparability_with_papers


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
