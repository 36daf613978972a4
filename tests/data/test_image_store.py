"""Sets of images, from a hub or a folder, as squares in memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def pictures(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    """A folder of pictures in two classes, whose level is ten times their number."""
    for number, size in enumerate(sizes):
        path = folder / "train" / ("cat" if number % 2 else "ant") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 10 * number if mode == "L" else (10 * number, 0, 255)).save(path)
    return folder


def test_the_embedded_set_holds_a_thousand_images_of_each_of_ten_clothes() -> None:
    images = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()
    assert images.pixels.shape == (10_000, 1, 28, 28)
    assert images.pixels.dtype == torch.uint8
    assert images.label.bincount().tolist() == [1000] * 10
    assert images.class_names[7:] == ("Sneaker", "Bag", "Ankle boot")
    assert images.pixels.float().mean().item() == pytest.approx(73.16, abs=0.01)


def test_held_out_images_are_never_trained_on_and_always_the_same() -> None:
    store = ImageStore(None, FASHION_MINI, channels=1, resolution=28, num_held_out=1000)
    train, held_out = store.load("train"), store.load("held_out")
    assert (len(train), len(held_out)) == (9000, 1000)
    assert torch.equal(held_out.pixels, store.load("held_out").pixels)
    together = torch.cat([train.pixels, held_out.pixels]).flatten(1)
    whole = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load().pixels.flatten(1)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, whole.numpy()))


def test_classes_keep_their_images_and_their_numbers() -> None:
    images = ImageStore(None, FASHION_MINI, channels=1, resolution=28, classes=["Sneaker", "Bag"]).load()
    assert sorted(set(images.label.tolist())) == [7, 8]
    assert len(images) == 2000


def test_padding_puts_the_image_in_the_middle_of_black() -> None:
    small = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load()
    padded = ImageStore(None, FASHION_MINI, channels=1, resolution=32, fit="pad").load()
    assert torch.equal(padded.pixels[:, :, 2:-2, 2:-2], small.pixels)
    assert padded.pixels.sum() == small.pixels.sum()


def test_resizing_takes_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    (tmp_path / "train").mkdir()
    Image.fromarray(wide).save(tmp_path / "train" / "wide.png")
    image = ImageStore(None, tmp_path, resolution=10, label_column=None).load().pixels[0]
    assert image.shape == (3, 10, 10)
    assert image[:, 5, 5].tolist() == [200, 100, 50]
    assert image[:, 5, 0].tolist() == [200, 100, 50]


def test_a_folder_of_classes_gives_labels_and_channels_as_asked(tmp_path: Path) -> None:
    images = ImageStore(None, pictures(tmp_path, [(9, 7), (8, 8), (5, 6)]), channels=1, resolution=4).load()
    assert images.class_names == ("ant", "cat")
    assert sorted(images.label.tolist()) == [0, 0, 1]
    assert images.pixels.shape == (3, 1, 4, 4)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "train" / "deep.png")
    image = ImageStore(None, tmp_path, channels=1, resolution=16, label_column=None).load().pixels[0, 0]
    assert image.flatten().tolist() == list(range(256))


# The reader of images leaves a file open that it could not decode.
@pytest.mark.filterwarnings(
    "ignore:.*unclosed file.*:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_truncated_image_is_said_with_its_place(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [(40, 40), (40, 40)])
    whole = folder / "train" / "cat" / "1.png"
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match="holds an image that cannot be read, near number"):
        ImageStore(None, folder).load()


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
        ({"fit": "stretch"}, r"fit must be one of pad, resize, got stretch\."),
        ({"resolution": 0}, r"resolution must be at least 1, got 0\."),
        ({"num_held_out": -1}, r"num_held_out must be at least 0, got -1\."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImageStore(None, FASHION_MINI, **arguments)  # type: ignore[arg-type]
