"""What samples are compared with."""

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
from support.ranks import on_processes

SIZE = 230


def some_images(seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 256, (SIZE, 1, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(SIZE))


def rows() -> Tensor:
    return some_images().gather(torch.arange(SIZE)).flatten(1)[:, :12].float()


def seen(folder: Path, features: StandIn | None = None, *, needs_rows: bool = False, seed: int = 0) -> FeatureSet:
    wanted = {"pooled": needs_rows}
    return ImageReference(some_images(seed), "train", folder).feature_sets(features or StandIn(), wanted, progress_bar)[
        "pooled"
    ]


def test_the_set_is_seen_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seen(tmp_path)
    assert first.count == SIZE
    torch.testing.assert_close(first.mean, rows().double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.covariance, rows().double().T.cov(), rtol=1e-12, atol=1e-9)
    monkeypatch.setattr(StandIn, "extract", None)
    again = seen(tmp_path)
    assert torch.equal(again.mean, first.mean)
    assert torch.equal(again.covariance, first.covariance)


def test_the_file_of_statistics_is_one_that_other_tools_read(tmp_path: Path) -> None:
    seen(tmp_path)
    (file,) = tmp_path.glob("train-stand_in-pooled-*.npz")
    with np.load(file) as arrays:
        assert np.allclose(arrays["mu"], np.mean(rows().numpy(), axis=0, dtype=np.float64), rtol=1e-12)
        assert np.allclose(arrays["sigma"], np.cov(rows().double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("change", ["images", "weights", "name", "resize", "output"])
def test_statistics_are_never_those_of_other_images_or_other_features(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache without all of that in its key would answer with the first statistics."""
    before = ImageReference(some_images(), "train", tmp_path).file(StandIn(), "pooled")
    images, output = some_images(), "pooled"
    if change == "images":
        images = some_images(seed=1)
    elif change == "output":
        output = "logits"
    else:
        monkeypatch.setattr(StandIn, {"weights": "weights_sha256"}.get(change, change), "other")
    assert ImageReference(images, "train", tmp_path).file(StandIn(), output) != before


def test_features_of_single_images_are_added_when_they_are_asked_for(tmp_path: Path) -> None:
    assert seen(tmp_path).rows is not None  # just seen
    assert seen(tmp_path).rows is None  # of a set that has more images than features, moments alone are kept
    assert torch.equal(seen(tmp_path, needs_rows=True).require_rows(), rows())
    assert torch.equal(seen(tmp_path).require_rows(), rows())


def test_a_set_of_fewer_images_than_features_keeps_its_rows_and_stays_exact(tmp_path: Path) -> None:
    class Many(Spatial):
        num_features = 16

    few = some_images().select(np.arange(9))
    found = [
        ImageReference(few, "train", tmp_path).feature_sets(Many(), {"pooled": False}, progress_bar) for _ in range(2)
    ]
    assert found[1]["pooled"].factor.shape == (16, 9)
    assert torch.equal(found[0]["pooled"].factor, found[1]["pooled"].factor)


def test_a_large_set_keeps_the_same_random_part_and_the_moments_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 50)
    found = seen(tmp_path, needs_rows=True)
    assert (found.count, found.require_rows().shape) == (SIZE, (50, 12))
    torch.testing.assert_close(found.mean, rows().double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.covariance, rows().double().T.cov(), rtol=1e-10, atol=1e-9)
    known = {tuple(row) for row in rows().tolist()}
    assert all(tuple(row) in known for row in found.require_rows().tolist())
    assert torch.equal(seen(tmp_path / "again", needs_rows=True).require_rows(), found.require_rows())
    assert ImageReference(some_images(), "train", tmp_path).protocol()["rows"] == 50


def on_one_of_several(folder: Path, max_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    module.MAX_ROWS = max_rows
    found = seen(folder, needs_rows=True)
    return found.mean, found.covariance, found.require_rows()


@pytest.mark.parametrize("max_rows", [50_000, 50])
def test_processes_share_the_set_and_agree(max_rows: int, tmp_path: Path) -> None:
    (alone,) = on_processes(1, on_one_of_several, tmp_path, tmp_path / "one", max_rows)
    for answer in on_processes(2, on_one_of_several, tmp_path, tmp_path / "two", max_rows):
        assert torch.equal(answer[2], alone[2])
        for part, expected in zip(answer[:2], alone[:2], strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-9)


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    expected = seen(tmp_path)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(seen(tmp_path).mean, expected.mean)
    assert torch.equal(seen(tmp_path).mean, expected.mean)


def test_an_untrained_network_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "weights_sha256", None)
    seen(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said_and_the_numbers_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert seen(tmp_path / "file").count == SIZE
    assert "statistics of the reference are not kept" in capsys.readouterr().err


def test_statistics_from_a_file_are_the_reference(tmp_path: Path) -> None:
    mean, covariance = rows().double().mean(0), rows().double().T.cov()
    np.savez(tmp_path / "photos.npz", mu=mean.numpy(), sigma=covariance.numpy())
    reference = FileReference(tmp_path / "photos.npz")
    found = reference.feature_sets(StandIn(), {"pooled": False}, progress_bar)["pooled"]
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.covariance, covariance)
    assert (reference.name, reference.protocol()["split"]) == ("photos", "photos.npz")
    assert len(reference.protocol()["fingerprint"]) == 64


def test_our_own_file_serves_every_metric_and_is_refused_for_other_features(tmp_path: Path) -> None:
    expected = seen(tmp_path, needs_rows=True)
    (file,) = tmp_path.glob("*.npz")
    found = FileReference(file).feature_sets(StandIn(), {"pooled": True}, progress_bar)["pooled"]
    assert torch.equal(found.require_rows(), expected.require_rows())
    assert FileReference(file).name == "train"
    assert FileReference(file).protocol() == ImageReference(some_images(), "train", tmp_path).protocol()
    other = StandIn()
    other.weights_sha256 = "1" * 64
    with pytest.raises(ValueError, match="is of other features: its weights_sha256 is 0000"):
        FileReference(file).feature_sets(other, {"pooled": True}, progress_bar)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "must be of 12 features, as stand_in has, got 7"),
        ({"mu": np.zeros(7), "sigma": np.eye(8)}, r"must hold mu \[D\] and sigma \[D, D\], got \[7\] and \[8, 8\]"),
        ({"mu": np.zeros(12)}, r"must hold mu \[D\] and sigma \[D, D\], got \[12\] and \[\]"),
        ({"mean": np.zeros(12)}, "must hold mu and sigma, got mean"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "must hold finite numbers, got NaN or infinity in mu"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "must hold mu and sigma for pooled features"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "cannot be read as .npz"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(arrays: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        FileReference(tmp_path / "wrong.npz").feature_sets(StandIn(), {"pooled": False}, progress_bar)


def test_a_file_of_moments_alone_serves_no_metric_of_single_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "moments.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(ValueError, match="holds a mean and a covariance alone: fid needs no more, other metrics need"):
        FileReference(tmp_path / "moments.npz").feature_sets(StandIn(), {"pooled": True}, progress_bar)


def test_a_file_that_is_missing_or_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reference must be a split or a file .*nothing\.npz, which is missing"):
        FileReference(tmp_path / "nothing.npz")
    np.savez(tmp_path / "cut.npz", mu=np.zeros(12), sigma=np.eye(12))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read as \.npz"):
        FileReference(tmp_path / "cut.npz")
