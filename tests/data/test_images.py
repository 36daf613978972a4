"""Sets of images that lie in files."""

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


def test_images_are_gathered_in_the_order_asked_for(images: Images) -> None:
    index = np.array([7, 49, 0, 7])
    for asked in (index, torch.from_numpy(index)):
        batch = images.gather(asked)
        assert (batch.dtype, batch.shape) == (torch.uint8, (4, 3, 8, 6))
        assert np.array_equal(batch.numpy(), PIXELS[index])
    assert images.label[index].tolist() == [3, 1, 0, 3]
    with pytest.raises(IndexError, match="out of bounds"):
        images.gather(np.array([50]))


def test_a_batch_can_be_written_to_and_the_set_cannot(images: Images) -> None:
    images.gather(np.array([3])).fill_(0)
    images.label[3] = 77
    assert np.array_equal(images.gather(np.array([3]))[0].numpy(), PIXELS[3])
    assert int(pickle.loads(pickle.dumps(images)).label[3]) == 3


def test_selections_of_selections_are_views(images: Images) -> None:
    part = images.select(torch.tensor([40, 30, 20, 10])).select(np.array([2, 0]))
    assert np.array_equal(part.gather(np.array([0, 1])).numpy(), PIXELS[[20, 40]])
    assert part.label.tolist() == [0, 0]
    assert (len(part), part.class_names) == (2, images.class_names)
    assert np.shares_memory(part._pixels, images._pixels)


def test_batches_are_all_images_once(images: Images) -> None:
    batches = list(images.select(np.arange(40, 3, -1)).batches(15))
    assert [len(batch) for batch in batches] == [15, 15, 7]
    assert np.array_equal(torch.cat(batches).numpy(), PIXELS[40:3:-1])


def test_a_spawned_process_receives_names_of_files_and_no_pixels(tmp_path: Path) -> None:
    shape = (1000, 3, 32, 32)
    np.zeros(shape, dtype=np.uint8).tofile(tmp_path / "pixels")
    np.zeros(1000, dtype=np.int64).tofile(tmp_path / "label")
    images = Images.open(tmp_path / "pixels", tmp_path / "label", shape)
    assert len(images.label) == 1000
    sent = pickle.dumps(images)
    assert len(sent) < 1000  # of three million pixels
    assert pickle.loads(sent).gather(np.array([999])).shape == (1, 3, 32, 32)


def test_the_fingerprint_is_of_the_content_wherever_it_lies(images: Images) -> None:
    in_memory = Images(torch.from_numpy(PIXELS), torch.from_numpy(LABEL), ("other", "names"))
    assert images.fingerprint == in_memory.fingerprint
    # sha256 of the shape as text, the pixels and the labels: a constant, so that it is the same on every machine
    assert in_memory.fingerprint == "92cdc1050fcebd32759e4bcba928530b86e059f4c30c68060327fde930d66077"


def test_other_pixels_labels_shapes_and_choices_have_other_fingerprints(images: Images) -> None:
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
