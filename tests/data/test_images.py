"""Decoded image sets in memory-mapped files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.data.images import Images

SHAPE = (50, 3, 8, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
LABEL = np.arange(50, dtype=np.int64) % 4


@pytest.fixture
def images(tmp_path: Path) -> Images:
    PIXELS.tofile(tmp_path / "pixels")
    LABEL.tofile(tmp_path / "label")
    return Images.open(tmp_path / "pixels", tmp_path / "label", SHAPE, class_names=("a", "b", "c", "d"))


def test_images_are_gathered_in_the_order_of_the_index(images: Images) -> None:
    index = np.array([7, 49, 0, 7])
    for numbers in (index, torch.from_numpy(index)):
        batch = images.gather(numbers)
        assert (batch.dtype, batch.shape) == (torch.uint8, (4, 3, 8, 6))
        assert np.array_equal(batch.numpy(), PIXELS[index])
    assert images.label[index].tolist() == [3, 1, 0, 3]
    with pytest.raises(IndexError, match="out of bounds"):
        images.gather(np.array([50]))


def test_writing_to_a_batch_does_not_change_the_set(images: Images) -> None:
    images.gather(np.array([3])).fill_(0)
    images.label[3] = 77
    assert np.array_equal(images.gather(np.array([3]))[0].numpy(), PIXELS[3])
    assert int(pickle.loads(pickle.dumps(images)).label[3]) == 3


def test_nested_selections_are_views(images: Images) -> None:
    part = images.select(torch.tensor([40, 30, 20, 10])).select(np.array([2, 0]))
    assert np.array_equal(part.gather(np.array([0, 1])).numpy(), PIXELS[[20, 40]])
    assert part.label.tolist() == [0, 0]
    assert (len(part), part.class_names) == (2, images.class_names)
    assert np.shares_memory(part._pixels, images._pixels)


def test_batches_contain_all_images_once(images: Images) -> None:
    batches = list(images.select(np.arange(40, 3, -1)).batches(15))
    assert [len(batch) for batch in batches] == [15, 15, 7]
    assert np.array_equal(torch.cat(batches).numpy(), PIXELS[40:3:-1])


def test_a_spawned_process_receives_file_names_instead_of_pixels(tmp_path: Path) -> None:
    shape = (1000, 3, 32, 32)
    np.zeros(shape, dtype=np.uint8).tofile(tmp_path / "pixels")
    np.zeros(1000, dtype=np.int64).tofile(tmp_path / "label")
    images = Images.open(tmp_path / "pixels", tmp_path / "label", shape)
    assert len(images.label) == 1000
    pickled = pickle.dumps(images)
    assert len(pickled) < 1000  # bytes, for three million pixels
    assert pickle.loads(pickled).gather(np.array([999])).shape == (1, 3, 32, 32)


def test_the_fingerprint_is_the_same_in_files_and_in_memory(images: Images) -> None:
    in_memory = Images(torch.from_numpy(PIXELS), torch.from_numpy(LABEL), ("other", "names"))
    assert images.fingerprint == in_memory.fingerprint
    # SHA-256 of the shape as text, the pixels and the labels, which must be the same on all machines.
    assert in_memory.fingerprint == "92cdc1050fcebd32759e4bcba928530b86e059f4c30c68060327fde930d66077"


def test_the_fingerprint_depends_on_pixels_labels_shape_and_selection(images: Images) -> None:
    pixels, label = PIXELS.copy(), LABEL.copy()
    pixels[49, 2, 7, 5] ^= 1
    label[49] += 1
    others = [
        Images(pixels, LABEL),
        Images(PIXELS, label),
        Images(PIXELS.reshape(50, 3, 6, 8), LABEL),
        images.select(np.arange(49)),
        images.select(np.arange(50)[::-1].copy()),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 6
    again = images.select(np.arange(49))
    assert again.fingerprint == others[3].fingerprint
