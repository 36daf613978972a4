"""Estimated duration of the metrics of an evaluation."""

import re
from pathlib import Path

import pytest
import torch

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.selection import Selection
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.evaluation.reference import ImageReference
from diffusion_lab.features import FashionCNN
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.metrics.frechet import FrechetDistance
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.process import FixedSmall
from diffusion_lab.runs.cost import measuring
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.setup.evaluation import Measurement
from support.fake_features import Brightness, StandIn
from support.small_runs import FewImages, small_module

TIME = r"about \S+ (seconds|minutes|hours)"


def measurement(folder: Path, store: ImageStore | None = None, *means: MeanOverImages) -> Measurement:
    images = SeededImages(small_module(), batch_size=12)
    data = FewImages().load()
    evaluator = Evaluator(images, ImageReference(data, "train", folder), 20)
    metrics: list[Metric] = [] if means else [FrechetDistance(StandIn())]
    target = Target(folder, folder / "last.ckpt")
    return Measurement(target, 0, evaluator, metrics, [(mean, data) for mean in means], store or FewImages())


def printed(given: Measurement, capsys: pytest.CaptureFixture[str]) -> list[str]:
    measuring.print_measuring_cost(given, "32-true")
    return capsys.readouterr().out.splitlines()


def test_the_features_of_the_reference_are_counted_until_they_are_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = measurement(tmp_path)
    (line,) = printed(job, capsys)
    assert re.fullmatch(
        rf"cost of stand_in features: {TIME} for all 50 images of reference=train and 20 generated images; "
        rf"the reference statistics are stored for later evaluations in {re.escape(str(tmp_path))}",
        line,
    )
    job.evaluation.measure(job.metrics)
    assert re.fullmatch(rf"cost of stand_in features: {TIME} for 20 generated images", printed(job, capsys)[0])


def test_a_long_evaluation_on_a_cpu_names_other_features_and_smaller_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "MANY_SECONDS", 0)
    embedded = Path(measuring.__file__).parents[2] / "data" / "embedded" / "fashion_mini"
    store = ImageStore(None, path=embedded, channels=1, resolution=8, selection=Selection(num_held_out=10))
    (line,) = printed(measurement(tmp_path, store), capsys)
    assert "; shorter on a CPU: features=fashion_cnn, or reference=held_out (10 images)" in line


def test_the_duration_of_likelihoods_is_printed_with_their_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = small_module().process
    bound = MeanOverImages(VariationalBound(process, FixedSmall()), "train", 30)
    means = [bound, MeanOverImages(FlowLikelihood(process), "train", 30), MeanOverImages(Brightness(), "train")]
    found = printed(measurement(tmp_path, None, *means), capsys)
    images = r"for 30 images of train"
    expected = [
        rf"cost of bits_bound: {TIME} {images} \(20 evaluations of the network each\)",
        rf"cost of bits_flow: {TIME} {images} \(typically 212 evaluations of the network each\)",
        r"cost of brightness: unknown for 50 images of train \(an unknown number of evaluations of the network each\)",
    ]
    assert len(found) == 3
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, found, strict=True)), found


def test_a_long_likelihood_on_a_cpu_names_the_number_of_images_that_takes_about_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = MeanOverImages(VariationalBound(small_module().process, FixedSmall()), "train", 30)
    monkeypatch.setattr(measuring, "pass_seconds_per_image", lambda *given, **options: 0.2)
    (line,) = printed(measurement(tmp_path, None, bound), capsys)  # 20 passes for each image
    assert line.startswith("cost of bits_bound: about 2 minutes for 30 images")
    assert line.endswith("; shorter on a CPU: metrics.bound.num_images=10")
    bound = MeanOverImages(VariationalBound(small_module().process, FixedSmall()), "train", 12)
    assert "shorter" not in printed(measurement(tmp_path, None, bound), capsys)[0]  # 48 seconds


def test_the_time_of_features_is_positive_and_leaves_the_network_unchanged() -> None:
    features = FashionCNN()
    pixels = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    before = features(pixels)["pooled"]
    assert 0 < measuring.seconds_per_image(features, (1, 28, 28), torch.device("cpu")) < 1
    assert torch.equal(features(pixels)["pooled"], before)
