"""Sets of images, from a hub or a folder, as squares in memory."""

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

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"


def every(images: Images) -> Tensor:
    """All pixels of a small set."""
    return images.gather(torch.arange(len(images)))


def pictures(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    """A folder of pictures in two classes, whose level is ten times their number."""
    for number, size in enumerate(sizes):
        path = folder / "train" / ("cat" if number % 2 else "ant") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 10 * number if mode == "L" else (10 * number, 0, 255)).save(path)
    return folder


def test_the_embedded_set_holds_a_thousand_images_of_each_of_ten_clothes() -> None:
    images = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()
    assert (images.channels, images.resolution) == (1, 28)
    assert every(images).shape == (10_000, 1, 28, 28)
    assert every(images).dtype == torch.uint8
    assert images.label.bincount().tolist() == [1000] * 10
    assert images.class_names[7:] == ("Sneaker", "Bag", "Ankle boot")
    assert every(images).float().mean().item() == pytest.approx(73.16, abs=0.01)


def test_held_out_images_are_never_trained_on_and_always_the_same() -> None:
    store = ImageStore(None, FASHION_MINI, channels=1, resolution=28, num_held_out=1000)
    train, held_out = store.load("train"), store.load("held_out")
    assert (len(train), len(held_out)) == (9000, 1000)
    assert torch.equal(every(held_out), every(store.load("held_out")))
    together = torch.cat([every(train), every(held_out)]).flatten(1)
    whole = every(ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()).flatten(1)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, whole.numpy()))


def test_classes_keep_their_images_and_their_numbers() -> None:
    images = ImageStore(None, FASHION_MINI, channels=1, resolution=28, classes=["Sneaker", "Bag"]).load()
    assert sorted(set(images.label.tolist())) == [7, 8]
    assert len(images) == 2000


def test_a_largest_number_of_images_is_a_fixed_random_part_of_what_is_left(tmp_path: Path) -> None:
    settings = {"channels": 1, "resolution": 28, "num_held_out": 1000, "classes": ["Sneaker", "Bag"]}
    whole = ImageStore(None, FASHION_MINI, **settings)  # type: ignore[arg-type]
    few = ImageStore(None, FASHION_MINI, **settings, max_images=100)  # type: ignore[arg-type]
    images = every(few.load())
    assert len(images) == 100
    assert torch.equal(images, every(few.load()))
    assert 30 < int((few.load().label == 7).sum()) < 70
    everything = set(map(bytes, every(whole.load()).flatten(1).numpy()))
    assert {bytes(image) for image in images.flatten(1).numpy()} <= everything
    assert torch.equal(every(few.load("held_out")), every(whole.load("held_out")))  # the part of train alone is cut
    assert len(ImageStore(None, FASHION_MINI, channels=1, resolution=28, max_images=20_000).load()) == 10_000


def test_what_is_held_out_does_not_depend_on_the_classes_that_are_kept() -> None:
    settings = {"channels": 1, "resolution": 28, "num_held_out": 1000}
    of_all = ImageStore(None, FASHION_MINI, **settings).load("held_out")  # type: ignore[arg-type]
    of_bags = ImageStore(None, FASHION_MINI, **settings, classes=["Bag"]).load("held_out")  # type: ignore[arg-type]
    assert torch.equal(every(of_bags), every(of_all.select((of_all.label == 8).nonzero().squeeze(1))))
    assert 60 < len(of_bags) < 140


def test_padding_puts_the_image_in_the_middle_of_black() -> None:
    small = every(ImageStore(None, FASHION_MINI, channels=1, resolution=28).load())
    padded = every(ImageStore(None, FASHION_MINI, channels=1, resolution=32, fit="pad").load())
    assert torch.equal(padded[:, :, 2:-2, 2:-2], small)
    assert padded.sum() == small.sum()


def test_resizing_takes_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    (tmp_path / "train").mkdir()
    Image.fromarray(wide).save(tmp_path / "train" / "wide.png")
    image = ImageStore(None, tmp_path, resolution=10, label_column=None).load().gather(torch.arange(1))[0]
    assert image.shape == (3, 10, 10)
    assert image[:, 5, 5].tolist() == [200, 100, 50]
    assert image[:, 5, 0].tolist() == [200, 100, 50]


def test_a_folder_of_classes_gives_labels_and_channels_as_asked(tmp_path: Path) -> None:
    images = ImageStore(None, pictures(tmp_path, [(9, 7), (8, 8), (5, 6)]), channels=1, resolution=4).load()
    assert images.class_names == ("ant", "cat")
    assert sorted(images.label.tolist()) == [0, 0, 1]
    assert every(images).shape == (3, 1, 4, 4)


def test_folders_may_hold_images_flat_or_by_split(tmp_path: Path) -> None:
    for place, level in (("flat", 1), ("split/train", 2), ("split/test", 3)):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4), level).save(tmp_path / place / "one.png")
    flat, split = (ImageStore(None, tmp_path / name, resolution=4, label_column=None) for name in ("flat", "split"))
    levels = [int(images.gather(torch.arange(1)).max()) for images in (flat.load(), split.load(), split.load("test"))]
    assert levels == [1, 2, 3]
    with pytest.raises(ValueError, match="cannot be read as images with a split 'test'"):
        flat.load("test")


def test_a_missing_folder_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path must be a folder .*, got .*nowhere\.$"):
        ImageStore(None, tmp_path / "nowhere").locate()


def test_an_empty_folder_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path must hold .*train-\*\.parquet.* is empty\.$"):
        ImageStore(None, tmp_path).locate()


def test_a_folder_of_something_else_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"data\.path=.* cannot be read as images with a split 'train'"):
        ImageStore(None, tmp_path).load()


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"data\.hub_name=nobody/nothing is neither in .* set data\.path to"):
        ImageStore("nobody/nothing").locate()


def test_unknown_columns_splits_and_classes_are_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"must be among \['image', 'label'\] .* got img\."):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28, image_column="img").load()
    with pytest.raises(ValueError, match="cannot be read as images with a split 'test'"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28).load("test")
    with pytest.raises(ValueError, match=r"data\.classes must be among T-shirt/top, .*, got Sneker\."):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28, classes=["Sneker"]).load()
    with pytest.raises(ValueError, match=r"data\.num_held_out must be above 0"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=28).load("held_out")


def test_padding_to_a_smaller_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.resolution must be at least .* 28, got 16; try data\.fit=resize"):
        ImageStore(None, FASHION_MINI, channels=1, resolution=16, fit="pad").load()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 2\."),
        ({"fit": "stretch"}, r"fit must be one of pad, resize, adm, got stretch\."),
        ({"resolution": 0}, r"resolution must be at least 1, got 0\."),
        ({"num_held_out": -1}, r"num_held_out must be at least 0, got -1\."),
        ({"max_images": 0}, r"max_images must be at least 1 or null, got 0\."),
        ({"on_error": "ignore"}, r"on_error must be one of skip, raise, got ignore\."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImageStore(None, FASHION_MINI, **arguments)  # type: ignore[arg-type]
