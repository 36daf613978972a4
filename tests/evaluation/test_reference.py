"""References that samples are compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.evaluation import reference as module
from diffusion_lab.evaluation.reference import FileReference, ImageReference
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.reporting.progress import progress_bar
from support.fake_features import Spatial, StandIn
from support.ranks import run_on_ranks

SIZE = 230


def some_images(seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 256, (SIZE, 1, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(SIZE))


def rows() -> Tensor:
    return some_images().gather(torch.arange(SIZE)).flatten(1)[:, :12].float()


def pooled(folder: Path, *, needs_rows: bool = False) -> FeatureSet:
    reference = ImageReference(some_images(), "train", folder)
    return reference.feature_sets(StandIn(), {"pooled": needs_rows}, progress_bar)["pooled"]


def test_the_features_of_all_images_are_extracted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pooled(tmp_path)
    assert first.count == SIZE
    torch.testing.assert_close(first.mean, rows().double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.covariance, rows().double().T.cov(), rtol=1e-12, atol=1e-9)
    monkeypatch.setattr(StandIn, "extract", None)
    again = pooled(tmp_path)
    assert torch.equal(again.mean, first.mean)
    assert torch.equal(again.covariance, first.covariance)


def test_the_number_of_images_to_extract_is_0_once_their_statistics_are_cached(tmp_path: Path) -> None:
    reference = ImageReference(some_images(), "train", tmp_path)
    assert reference.num_to_extract(StandIn(), {"pooled": False}) == SIZE
    pooled(tmp_path)
    assert reference.num_to_extract(StandIn(), {"pooled": False}) == 0
    assert reference.num_to_extract(StandIn(), {"pooled": True}) == SIZE  # the file has no features of single images
    assert reference.num_to_extract(StandIn(), {"pooled": False, "logits": False}) == SIZE


def test_the_cache_file_contains_mu_and_sigma_as_other_tools_read_them(tmp_path: Path) -> None:
    pooled(tmp_path)
    (file,) = tmp_path.glob("train-stand_in-pooled-*.npz")
    with np.load(file) as arrays:
        assert np.allclose(arrays["mu"], np.mean(rows().numpy(), axis=0, dtype=np.float64), rtol=1e-12)
        assert np.allclose(arrays["sigma"], np.cov(rows().double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("change", ["images", "weights", "name", "resize", "output"])
def test_the_cache_file_depends_on_images_and_features(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the key of the cache lacked one of these, it would return the statistics of the first images or features."""
    before = ImageReference(some_images(), "train", tmp_path).file(StandIn(), "pooled")
    images, output = some_images(), "pooled"
    if change == "images":
        images = some_images(seed=1)
    elif change == "output":
        output = "logits"
    else:
        monkeypatch.setattr(StandIn, {"weights": "weights_sha256"}.get(change, change), "other")
    assert ImageReference(images, "train", tmp_path).file(StandIn(), output) != before


def test_features_of_single_images_are_added_to_the_cache_on_request(tmp_path: Path) -> None:
    assert pooled(tmp_path).rows is not None  # just extracted
    assert pooled(tmp_path).rows is None  # from the cache: with more images than features, it contains only the moments
    assert torch.equal(pooled(tmp_path, needs_rows=True).require_rows(), rows())
    assert torch.equal(pooled(tmp_path).require_rows(), rows())


def test_a_set_of_fewer_images_than_features_stores_its_rows_and_has_an_exact_factor(tmp_path: Path) -> None:
    class Many(Spatial):
        num_features = 16

    few = some_images().select(np.arange(9))
    found = [
        ImageReference(few, "train", tmp_path).feature_sets(Many(), {"pooled": False}, progress_bar) for _ in range(2)
    ]
    assert found[1]["pooled"].factor.shape == (16, 9)
    assert torch.equal(found[0]["pooled"].factor, found[1]["pooled"].factor)


def test_a_large_set_stores_a_fixed_random_subset_and_the_moments_of_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 50)
    found = pooled(tmp_path, needs_rows=True)
    assert (found.count, found.require_rows().shape) == (SIZE, (50, 12))
    torch.testing.assert_close(found.mean, rows().double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.covariance, rows().double().T.cov(), rtol=1e-10, atol=1e-9)
    all_rows = {tuple(row) for row in rows().tolist()}
    assert all(tuple(row) in all_rows for row in found.require_rows().tolist())
    assert torch.equal(pooled(tmp_path / "again", needs_rows=True).require_rows(), found.require_rows())
    assert ImageReference(some_images(), "train", tmp_path).protocol()["rows"] == 50


def measure_on_rank(folder: Path, max_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    module.MAX_ROWS = max_rows
    found = pooled(folder, needs_rows=True)
    return found.mean, found.covariance, found.require_rows()


@pytest.mark.parametrize("max_rows", [50_000, 50])
def test_the_statistics_are_the_same_on_1_and_2_ranks(max_rows: int, tmp_path: Path) -> None:
    (expected,) = run_on_ranks(1, measure_on_rank, tmp_path, tmp_path / "one", max_rows)
    for result in run_on_ranks(2, measure_on_rank, tmp_path, tmp_path / "two", max_rows):
        assert torch.equal(result[2], expected[2])
        for moment, expected_moment in zip(result[:2], expected[:2], strict=True):
            torch.testing.assert_close(moment, expected_moment, rtol=1e-12, atol=1e-9)


def test_a_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    expected = pooled(tmp_path)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(pooled(tmp_path).mean, expected.mean)
    assert torch.equal(pooled(tmp_path).mean, expected.mean)


def test_features_of_an_untrained_network_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "weights_sha256", None)
    pooled(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_progress_of_the_features_ends_at_the_number_of_images(tmp_path: Path) -> None:
    totals, done = list[int](), list[int]()

    @contextmanager
    def display(description: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield done.append

    ImageReference(some_images(), "train", tmp_path).feature_sets(StandIn(), {"pooled": False}, display)
    assert totals == [SIZE]
    assert sum(done) == SIZE


def test_a_cache_that_cannot_be_written_prints_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert pooled(tmp_path / "file").count == SIZE
    assert "the reference statistics are not cached" in caplog.text


def test_statistics_from_a_file_are_the_reference(tmp_path: Path) -> None:
    mean, covariance = rows().double().mean(0), rows().double().T.cov()
    np.savez(tmp_path / "photos.npz", mu=mean.numpy(), sigma=covariance.numpy())
    reference = FileReference(tmp_path / "photos.npz")
    found = reference.feature_sets(StandIn(), {"pooled": False}, progress_bar)["pooled"]
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.covariance, covariance)
    assert (reference.name, reference.protocol()["split"]) == ("photos", "photos.npz")
    assert len(reference.protocol()["fingerprint"]) == 64


def test_a_cache_file_can_be_the_reference_of_all_metrics_with_the_same_features(tmp_path: Path) -> None:
    expected = pooled(tmp_path, needs_rows=True)
    (file,) = tmp_path.glob("*.npz")
    found = FileReference(file).feature_sets(StandIn(), {"pooled": True}, progress_bar)["pooled"]
    assert torch.equal(found.require_rows(), expected.require_rows())
    assert FileReference(file).name == "train"
    assert FileReference(file).protocol() == ImageReference(some_images(), "train", tmp_path).protocol()
    other = StandIn()
    other.weights_sha256 = "1" * 64
    with pytest.raises(ValueError, match=r"same features as the samples \(weights_sha256=1.*\), got weights_sha256=0"):
        FileReference(file).feature_sets(other, {"pooled": True}, progress_bar)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, r"must have 12 features \(as stand_in has\), got 7"),
        ({"mu": np.zeros(7), "sigma": np.eye(8)}, r"must contain mu \[D\] and sigma \[D, D\], got \[7\] and \[8, 8\]"),
        ({"mu": np.zeros(12)}, r"must contain mu \[D\] and sigma \[D, D\], got \[12\] and \[\]"),
        ({"mean": np.zeros(12)}, "must contain mu and sigma, got mean"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "must contain finite numbers, got NaN or infinity in mu"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "must contain mu and sigma for pooled features, got mu_s"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "cannot be read as .npz"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        FileReference(tmp_path / "wrong.npz").feature_sets(StandIn(), {"pooled": False}, progress_bar)


def test_a_file_of_moments_is_refused_for_metrics_of_single_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "moments.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(ValueError, match="must contain the features of single images for metrics other than fid"):
        FileReference(tmp_path / "moments.npz").feature_sets(StandIn(), {"pooled": True}, progress_bar)


def test_a_file_that_is_missing_or_truncated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`reference` must be a split or an existing statistics file .*, got .*missing\.npz"
    ):
        FileReference(tmp_path / "missing.npz")
    np.savez(tmp_path / "truncated.npz", mu=np.zeros(12), sigma=np.eye(12))
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "truncated.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"truncated\.npz cannot be read as \.npz"):
        FileReference(tmp_path / "truncated.npz")
