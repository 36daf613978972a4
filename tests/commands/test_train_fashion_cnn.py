import numpy as np
import pytest
import torch

from diffusion_lab.commands.train_fashion_cnn import accuracy, augment
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.features import FashionCNN
from diffusion_lab.paths import PACKAGE


@pytest.mark.full
def test_accuracy_is_the_fraction_of_images_with_the_right_class() -> None:
    images = ImageStore(None, PACKAGE / "data" / "embedded" / "fashion_mini", channels=1, resolution=28).load()
    images = images.select(np.arange(501))
    network = FashionCNN()
    logits = network(images.gather(np.arange(501)))["logits"]
    expected = float((logits.argmax(1) == images.label).double().mean())
    assert expected > 0.9
    network.layers.train()  # as in the training loop
    assert accuracy(network, images) == pytest.approx(expected, abs=1e-12)


def test_augmented_images_are_flipped_or_shifted_by_up_to_two_pixels() -> None:
    pixels = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    pixels[:, :, 10, 5] = 255
    augmented = augment(pixels, torch.Generator().manual_seed(0))
    assert augmented.shape == pixels.shape
    assert set(augmented.flatten().tolist()) == {-1, 1}
    _, _, rows, columns = (augmented == 1).nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [8, 9, 10, 11, 12]
    assert sorted(set(columns.tolist())) == [3, 4, 5, 6, 7, 20, 21, 22, 23, 24]
