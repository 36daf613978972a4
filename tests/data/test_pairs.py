"""Condition images of image-to-image networks: a second column of a table, or a second folder."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor

from diffusion_lab.data.augmentation import EDMAugmentation
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.data.pairs import Pairs
from diffusion_lab.data.selection import Selection
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.masking import Halves
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from support.condition_networks import error_at, trained
from support.small_runs import FewImages


def write(folder: Path, level: int, suffix: str = ".png", mode: str = "L", size: tuple[int, int] = (8, 8)) -> Path:
    """Write 12 images in two class folders of train, whose left half has the level `level` + 10 k, and the right 5."""
    for k in range(12):
        path = folder / "train" / ("cat" if k % 2 else "ant") / f"{k:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full(size[::-1], 5, dtype=np.uint8)
        pixels[:, : size[0] // 2] = level + 10 * k
        Image.fromarray(pixels).convert(mode).save(path)
    return folder


def store(folder: Path, **settings: Any) -> ImageStore:
    return ImageStore(None, folder, channels=1, resolution=8, **settings)


def pixels(images: Images) -> Tensor:
    return images.gather(torch.arange(len(images)))


def levels(images: Images) -> list[int]:
    return pixels(images)[:, 0, 0, 0].tolist()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "photos", 100), write(tmp_path / "edges", 0, ".bmp", "RGB", size=(24, 16))


def test_each_image_has_the_image_of_the_same_name_at_the_same_size(folders: tuple[Path, Path]) -> None:
    images = Pairs(path=folders[1], channels=3).load(store(folders[0], label_column="label"), "train")
    assert images.condition is not None
    assert pixels(images.condition).shape == (12, 3, 8, 8)
    assert [level - 100 for level in levels(images)] == levels(images.condition)
    assert images.label.tolist() == [0] * 6 + [1] * 6
    plain = store(folders[0], label_column="label").load()
    assert images.fingerprint == plain.fingerprint  # the reference of an unconditional run on the same images


def test_a_selection_of_the_images_selects_their_partners(folders: tuple[Path, Path]) -> None:
    selected = store(folders[0], label_column="label", selection=Selection(3, ["cat"], max_images=2))
    for split, count in (("train", 2), ("held_out", 3)):
        images = Pairs(path=folders[1], channels=1).load(selected, split)
        assert images.condition is not None
        assert [level - 100 for level in levels(images)] == levels(images.condition)
        assert len(images) <= count
    assert levels(images.select(torch.tensor([0])).condition) == levels(images.condition)[:1]  # type: ignore[arg-type]


def test_images_with_a_damaged_partner_and_damaged_images_are_left_out(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (folders[0] / "train" / "ant" / "02.png").write_bytes(b"damaged")
    (folders[1] / "train" / "cat" / "05.bmp").write_bytes(b"damaged")
    images = Pairs(path=folders[1], channels=1).load(store(folders[0], label_column=None), "train")
    assert images.condition is not None
    assert sorted(levels(images)) == [100 + 10 * k for k in range(12) if k not in (2, 5)]
    assert [level - 100 for level in levels(images)] == levels(images.condition)
    assert "edges (train): 1 image is left out, because the condition image cannot be read" in caplog.text


def test_a_column_of_a_table_has_the_condition_images(tmp_path: Path) -> None:
    rows = [Image.new("RGB", (8, 8), (10 * k, 0, 0)) for k in range(6)]
    edges = [Image.new("L", (8, 8), 20 * k) for k in range(6)]
    columns = datasets.Features(
        {"photo": datasets.Image(), "edges": datasets.Image(), "label": datasets.Value("int64")}
    )
    table = datasets.Dataset.from_dict({"photo": rows, "edges": edges, "label": [0, 1] * 3}, columns)
    table.to_parquet(str(tmp_path / "train-0.parquet"))
    images = ImageStore(None, tmp_path, image_column="photo", channels=3, resolution=8)
    paired = Pairs("edges", channels=1).load(images, "train")
    assert paired.condition is not None
    assert (paired.channels, paired.condition.channels) == (3, 1)
    assert levels(paired.condition) == [2 * level for level in levels(paired)]
    gray = Pairs("photo", channels=1).load(images, "train").condition  # the task of coloring gray images
    assert gray is not None
    assert levels(gray) == [round(0.299 * level) for level in levels(paired)]
    with pytest.raises(ValueError, match=r"data.condition_column must be one of photo, edges for .*, got sketches\."):
        Pairs("sketches").load(images, "train")
    with pytest.raises(ValueError, match=r"data.condition_path must be null unless .* got .*; data.condition_column=N"):
        Pairs(path=tmp_path).load(images, "train")


def test_missing_partners_are_named(folders: tuple[Path, Path]) -> None:
    for name in ("ant/02.bmp", "cat/05.bmp"):
        (folders[1] / "train" / name).unlink()
    message = r"must contain an image with the name of each image in .*photos, got .*edges, which has none for 2 of "
    with pytest.raises(
        ValueError, match=rf"data.condition_path {message}12 images: train/ant/02.png, train/cat/05.png\."
    ):
        Pairs(path=folders[1]).load(store(folders[0]), "train")
    with pytest.raises(FileNotFoundError, match=r"data.condition_path must be a folder of .*, which does not"):
        Pairs(path=folders[1] / "nowhere").load(store(folders[0]), "train")
    with pytest.raises(ValueError, match=r"data.condition_column must be null for a folder .*; data.condition_path="):
        Pairs("edges").load(store(folders[0]), "train")


def test_flips_and_augmentation_apply_to_image_and_partner_alike(folders: tuple[Path, Path]) -> None:
    data = ImageDataModule(
        store(folders[0], label_column="label"), batch_size=12, seed=3, horizontal_flip=True,
        pairs=Pairs(path=folders[1], channels=3),
    )  # fmt: skip
    batch = first_batch_of(data)
    assert batch.image is not None
    assert (batch.x_0.shape, batch.image.shape) == ((12, 1, 8, 8), (12, 3, 8, 8))
    shown, partner = (((part + 1) * 127.5).round() for part in (batch.x_0[:, 0], batch.image[:, 0]))
    is_flipped = shown[:, 0, 0] == 5
    assert 2 < int(is_flipped.sum()) < 10
    for rows, first, last in ((~is_flipped, 0, 7), (is_flipped, 7, 0)):
        assert torch.equal(shown[rows][:, :, first] - 100, partner[rows][:, :, first])
        assert torch.equal(partner[rows][:, :, last], torch.full((int(rows.sum()), 8), 5.0))
    same = Pairs(path=folders[0], channels=1)
    data = ImageDataModule(store(folders[0]), batch_size=12, seed=3, augmentation=EDMAugmentation(0.5), pairs=same)
    augmented = first_batch_of(data)
    assert torch.equal(augmented.x_0, augmented.image)
    assert int((augmented.augmentation.abs().sum(1) > 0).sum()) > 8


def first_batch_of(data: ImageDataModule) -> Any:
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_the_fingerprint_of_the_training_images_covers_their_partners(folders: tuple[Path, Path]) -> None:
    def fingerprint(pairs: Pairs | None) -> str:
        return ImageDataModule(store(folders[0]), batch_size=4, seed=0, pairs=pairs).fingerprint

    plain, paired = fingerprint(Pairs()), fingerprint(Pairs(path=folders[1], channels=1))
    assert plain == fingerprint(None)
    Image.new("L", (8, 8), 77).save(folders[1] / "train" / "ant" / "00.bmp")
    assert len({plain, paired, fingerprint(Pairs(path=folders[1], channels=1))}) == 3


class Inverted(FewImages):
    """Random images whose condition images are their negatives."""

    def load(self, split: str = "train") -> Images:
        images = super().load(split)
        return images.with_condition(Images(255 - pixels(images), images.label))


def test_a_network_learns_a_mapping_from_paired_images() -> None:
    module = trained(Inverted(), 200, condition_channels=1)
    x_0 = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1  # other images
    error = error_at(module, x_0, Condition(image=-x_0), t=1.0).mean().item()
    assert error < 0.02 * x_0.var().item()
    images = from_uint8(pixels(FewImages().load())[:20])
    samples = module.sample(range(20), Condition(image=-images), num_steps=4, weights="raw")
    assert (samples - images).square().mean().item() < 0.02 * x_0.var().item()


def test_one_kind_of_condition_image_is_accepted(folders: tuple[Path, Path]) -> None:
    for kinds, names in (
        ({"low_resolution": LowResolution(4), "masking": Halves()}, "low_resolution and masking"),
        ({"masking": Halves(), "pairs": Pairs("edges")}, "masking and data.condition_column=edges"),
    ):
        with pytest.raises(ValueError, match=rf"only one of low_resolution, .* can be given, .* got {names}\."):
            ImageDataModule(FewImages(), batch_size=4, seed=0, **kinds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data.condition_column must be null if .* is given, got a and"):
        Pairs("a", folders[0])
    with pytest.raises(ValueError, match=r"data.condition_channels must be 1 \(gray\) or 3 \(RGB\), got 2\."):
        Pairs("a", channels=2)
    few = FewImages().load()
    with pytest.raises(ValueError, match=r"`condition` must have one image of 8 x 8 pixels for each of .*, got 3"):
        few.with_condition(few.select(torch.arange(3)))
