"""Files that torch-fidelity and clean-fid cache, as references; hostile ones run no code."""

import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics

from diffusion_lab.data import Images
from diffusion_lab.evaluation.reference import FileReference, ImageReference
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.reporting.progress import progress_bar
from support.fake_features import Spatial, StandIn
from support.time_limit import time_limit

ROWS = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))


def feature_set(path: Path, *, needs_rows: bool = False) -> FeatureSet:
    return FileReference(path).feature_sets(StandIn(), {"pooled": needs_rows}, progress_bar)["pooled"]


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_statistics_that_torch_fidelity_caches_are_read(tmp_path: Path) -> None:
    found = feature_set(saved(tmp_path / "set-inception-v3-compat-stat-fid-2048.pt", fid_features_to_statistics(ROWS)))
    expected = FeatureSet.of(ROWS)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"must contain the features of single images for metrics other than fid"):
        feature_set(tmp_path / "set-inception-v3-compat-stat-fid-2048.pt", needs_rows=True)


def test_features_that_torch_fidelity_or_clean_fid_caches_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "set_clean_custom_na_kid.npz", feats=ROWS.numpy())
    for path in (saved(tmp_path / "set-features-2048.pt", ROWS), tmp_path / "set_clean_custom_na_kid.npz"):
        found = feature_set(path, needs_rows=True)
        assert torch.equal(found.require_rows(), ROWS)
        assert torch.equal(found.covariance, FeatureSet.of(ROWS).covariance)
        assert found.count == 40
        assert FileReference(path).protocol()["rows"] == 40


def test_a_file_of_adm_has_statistics_of_pooled_and_spatial_features(tmp_path: Path) -> None:
    pooled, spatial = FeatureSet.of(ROWS), FeatureSet.of(ROWS[:, :5])
    np.savez(
        tmp_path / "VIRTUAL_set.npz", mu=pooled.mean, sigma=pooled.covariance, mu_s=spatial.mean,
        sigma_s=spatial.covariance,
    )  # fmt: skip
    found = FileReference(tmp_path / "VIRTUAL_set.npz").feature_sets(
        Spatial(), {"pooled": False, "spatial": False}, progress_bar
    )
    assert torch.equal(found["pooled"].covariance, pooled.covariance)
    assert torch.equal(found["spatial"].mean, spatial.mean)


@pytest.mark.parametrize("needs_rows", [False, True])
def test_saved_statistics_are_those_of_the_images(needs_rows: bool, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (150, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageReference(Images(pixels, torch.zeros(150, dtype=torch.int64)), "train", tmp_path / "cache")
    outputs = {"pooled": needs_rows, "spatial": False}
    images.save(tmp_path / "set.npz", Spatial(), outputs, progress_bar)
    reference = FileReference(tmp_path / "set.npz")
    assert (reference.name, reference.protocol()) == ("train", images.protocol())
    expected = images.feature_sets(Spatial(), outputs, progress_bar)
    found = reference.feature_sets(Spatial(), outputs, progress_bar)
    for output in outputs:
        assert torch.equal(found[output].mean, expected[output].mean)
        assert torch.equal(found[output].covariance, expected[output].covariance)
    assert (found["pooled"].rows is not None) == needs_rows
    with np.load(tmp_path / "set.npz") as arrays:  # as ADM's evaluator reads them
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays)


class Payload:
    """An object whose unpickling would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def call(function: str, *arguments: Any) -> bytes:
    """Return a pickle that calls a function, given as "module name"."""
    packed = pickle.dumps(arguments, protocol=2)
    body = b"".join(packed[position:] for _, _, position in list(pickletools.genops(packed))[1:2])[:-1]
    return b"\x80\x02c" + function.replace(" ", "\n").encode() + b"\n" + body + b"R."


def in_archive(pickled: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def torch_saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def hostile(target: Path) -> dict[str, bytes]:
    touch = f"touch {target}"
    whole = torch_saved({"mu": np.zeros(12), "sigma": np.eye(12)})
    return {
        "payload": torch_saved(Payload(target)),
        "payload in statistics": torch_saved({"mu": np.zeros(12), "sigma": Payload(target)}),
        "payload in an object array": torch_saved({"mu": np.array([Payload(target)], object), "sigma": np.eye(12)}),
        "plain pickle": pickle.dumps(Payload(target)),
        "nested pickle": torch_saved({"mu": pickle.dumps(Payload(target)), "sigma": np.eye(12)}),
        "builtins": in_archive(call("builtins eval", f"__import__('os').system('{touch}')")),
        "codec": in_archive(call("_codecs encode", "a" * 100, "zlib_codec")),
        "object dtype": in_archive(call("numpy dtype", "O8", False, True)),
        "huge array": in_archive(call("numpy._core.multiarray _reconstruct", 10**15)),
        "compressed": in_archive(pickle.dumps({"mu": 1}, protocol=2), zipfile.ZIP_DEFLATED),
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"mu, sigma",
        "other entries": torch_saved({"weights": torch.zeros(3)}),
        "wrong shapes": torch_saved({"mu": np.zeros(12), "sigma": np.eye(7)}),
        "not finite": torch_saved({"mu": np.full(12, np.nan), "sigma": np.eye(12)}),
        "integers": torch_saved({"mu": [1, 2], "sigma": np.eye(12)}),
        "sparse": torch_saved({"mu": torch.zeros(12), "sigma": torch.eye(12).to_sparse()}),
        "expanded": torch_saved(torch.zeros(1).expand(10**7, 12)),
        "one row": torch_saved(torch.zeros(1, 12)),
    }


@pytest.mark.parametrize("kind", hostile(Path("unused")))
def test_a_damaged_or_hostile_cache_of_torch_fidelity_is_refused_and_runs_no_code(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.pt"
    path.write_bytes(hostile(tmp_path / "touched")[kind])
    with (
        time_limit(10),
        pytest.raises(ValueError, match=r"^reference=.*cache\.pt (cannot be read as|must contain) .*\.$"),
    ):
        FileReference(path)
    assert not (tmp_path / "touched").exists()


def test_the_payloads_of_these_tests_would_run(tmp_path: Path) -> None:
    (tmp_path / "cache.pt").write_bytes(hostile(tmp_path / "touched")["payload"])
    torch.load(tmp_path / "cache.pt", weights_only=False)
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_cache_that_is_no_regular_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "cache.pt")
    with time_limit(5), pytest.raises(ValueError, match=r"`reference` must be .* existing statistics file"):
        FileReference(tmp_path / "cache.pt")
