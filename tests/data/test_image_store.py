"""Image sets of the hub or of a folder, at one size."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.data.selection import Selection

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"


def all_pixels(images: Images) -> Tensor:
    return images.gather(torch.arange(len(images)))


def write_images(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    """Write images of two classes whose level is ten times their number."""
    for number, size in enumerate(sizes):
        path = folder / "train" / ("cat" if number % 2 else "ant") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 10 * number if mode == "L" else (10 * number, 0, 255)).save(path)
    return folder


def test_the_embedded_set_contains_a_thousand_images_of_each_of_ten_classes() -> None:
    images = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()
    assert (images.channels, images.resolution) == (1, 28)
    assert all_pixels(images).shape == (10_000, 1, 28, 28)
    assert all_pixels(images).dtype == torch.uint8
    assert images.label.bincount().tolist() == [1000] * 10
    assert images.class_names[7:] == ("Sneaker", "Bag", "Ankle boot")
    assert all_pixels(images).float().mean().item() == pytest.approx(73.16, abs=0.01)


def test_held_out_images_are_always_the_same_and_not_in_the_train_split() -> None:
    store = ImageStore(None, FASHION_MINI, channels=1, resolution=28, selection=Selection(num_held_out=1000))
    train, held_out = store.load("train"), store.load("held_out")
    assert (len(train), len(held_out)) == (9000, 1000)
    assert torch.equal(all_pixels(held_out), all_pixels(store.load("held_out")))
    both = torch.cat([all_pixels(train), all_pixels(held_out)]).flatten(1)
    complete = all_pixels(ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()).flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, complete.numpy()))


def test_selected_classes_keep_all_their_images_and_labels() -> None:
    images = ImageStore(
        None, FASHION_MINI, channels=1, resolution=28, selection=Selection(classes=["Sneaker", "Bag"])
    ).load()
    assert sorted(set(images.label.tolist())) == [7, 8]
    assert len(images) == 2000


def test_max_images_keeps_a_fixed_random_part_of_the_selected_images(tmp_path: Path) -> None:
    def store(max_images: int | None) -> ImageStore:
        selection = Selection(1000, ["Sneaker", "Bag"], max_images)
        return ImageStore(None, FASHION_MINI, channels=1, resolution=28, selection=selection)

    complete, few = store(None), store(100)
    images = all_pixels(few.load())
    assert len(images) == 100
    assert torch.equal(images, all_pixels(few.load()))
    assert 30 < int((few.load().label == 7).sum()) < 70
    selected = set(map(bytes, all_pixels(complete.load()).flatten(1).numpy()))
    assert {bytes(image) for image in images.flatten(1).numpy()} <= selected
    # Only the train split is limited.
    assert torch.equal(all_pixels(few.load("held_out")), all_pixels(complete.load("held_out")))
    large = Selection(max_images=20_000)
    assert len(ImageStore(None, FASHION_MINI, channels=1, resolution=28, selection=large).load()) == 10_000


def test_held_out_images_do_not_depend_on_the_selected_classes() -> None:
    of_all, of_bags = (
        ImageStore(None, FASHION_MINI, channels=1, resolution=28, selection=Selection(1000, classes)).load("held_out")
        for classes in (None, ["Bag"])
    )
    assert torch.equal(all_pixels(of_bags), all_pixels(of_all.select((of_all.label == 8).nonzero().squeeze(1))))
    assert 60 < len(of_bags) < 140


def test_padding_centers_the_image_on_black() -> None:
    small = all_pixels(ImageStore(None, FASHION_MINI, channels=1, resolution=28).load())
    padded = all_pixels(ImageStore(None, FASHION_MINI, channels=1, resolution=32, fit="pad").load())
    assert torch.equal(padded[:, :, 2:-2, 2:-2], small)
    assert padded.sum() == small.sum()


def test_resizing_crops_the_center_square(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    (tmp_path / "train").mkdir()
    Image.fromarray(wide).save(tmp_path / "train" / "wide.png")
    image = ImageStore(None, tmp_path, resolution=10, label_column=None).load().gather(torch.arange(1))[0]
    assert image.shape == (3, 10, 10)
    assert image[:, 5, 5].tolist() == [200, 100, 50]
    assert image[:, 5, 0].tolist() == [200, 100, 50]


def test_a_folder_of_classes_gives_labels_and_the_requested_channels(tmp_path: Path) -> None:
    images = ImageStore(None, write_images(tmp_path, [(9, 7), (8, 8), (5, 6)]), channels=1, resolution=4).load()
    assert images.class_names == ("ant", "cat")
    assert sorted(images.label.tolist()) == [0, 0, 1]
    assert all_pixels(images).shape == (3, 1, 4, 4)


def test_folders_may_contain_images_directly_or_in_splits(tmp_path: Path) -> None:
    for folder, level in (("flat", 1), ("split/train", 2), ("split/test", 3)):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (4, 4), level).save(tmp_path / folder / "one.png")
    flat, split = (ImageStore(None, tmp_path / name, resolution=4, label_column=None) for name in ("flat", "split"))
    levels = [int(images.gather(torch.arange(1)).max()) for images in (flat.load(), split.load(), split.load("test"))]
    assert levels == [1, 2, 3]
    with pytest.raises(ValueError, match="cannot be read as images with a split 'test'"):
        flat.load("test")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data\.path must be a folder .*, got .*nowhere, which does not exist\.$"
    ):
        ImageStore(None, tmp_path / "nowhere").locate()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path must contain .*train-\*\.parquet.* is empty\.$"):
        ImageStore(None, tmp_path).locate()


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"data\.path=.* cannot be read as images with a split 'train'"):
        ImageStore(None, tmp_path).load()


def test_an_unreachable_hub_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"data\.hub_name=nobody/nothing is not in .* set data\.path to"):
        ImageStore("nobody/nothing").locate()


def test_unknown_columns_splits_and_classes_are_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"data\.image_column must be one of image for .*, got img\."):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28, image_column="img").load()
    with pytest.raises(ValueError, match="cannot be read as images with a split 'test'"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28).load("test")
    with pytest.raises(
        ValueError, match=r"data\.classes must be among T-shirt/top, .*, got Sneker; perhaps you mean data.classes="
    ):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28, selection=Selection(classes=["Sneker"])).load()
    with pytest.raises(ValueError, match=r"data\.num_held_out must be above 0"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28).load("held_out")


def test_padding_to_a_smaller_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.resolution must be at least 28 .*, got 16; try data\.fit=resize"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=16, fit="pad").load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, r"channels must be 1 \(gray\) or 3 \(RGB\), got 2\."),
        ({"fit": "stretch"}, r"fit must be one of pad, resize, adm, exact, got stretch\."),
        ({"resolution": 0}, r"resolution must be at least 1, got 0\."),
        ({"on_error": "ignore"}, r"on_error must be one of skip, raise, got ignore\."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageStore(None, FASHION_MINI, **arguments)  # type: ignore[arg-type]


def test_selections_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_held_out must be at least 0, got -1\."):
        Selection(num_held_out=-1)
    with pytest.raises(ValueError, match=r"max_images must be at least 1 or null, got 0\."):
        Selection(max_images=0)
