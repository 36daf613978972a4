"""Small convolutional Fashion-MNIST classifier, with weights in this repository."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features
from diffusion_lab.pixels import from_uint8

FASHION_CNN_WEIGHTS = Path(__file__).with_name("fashion_cnn.pt")


class FashionCNN(Features):
    """Convolutional Fashion-MNIST classifier; its 128 features are the spatial means of the last convolution's output.

    The weights in this repository were trained on the 60,000 training images by `src/train_fashion_cnn.py`, which also
    prints the accuracy on the 10,000 test images. 32 x 32 images are assumed to be Fashion-MNIST images that are padded
    by 2 pixels, and are cropped to the central 28 x 28 pixels; images of other sizes are resized.
    """

    name = "fashion_cnn"
    num_features = 128
    channels = (1,)
    outputs = ("pooled", "logits")
    num_classes = 10
    resize = "to 28: middle of 32, else bilinear with antialiasing"
    side = 28

    def __init__(self, weights: str | Path | None = FASHION_CNN_WEIGHTS) -> None:
        """weights: weights file written by train_fashion_cnn.py; None creates an untrained network."""
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_block(1, 32), *_conv_block(32, 32), nn.MaxPool2d(2),
            *_conv_block(32, 64), *_conv_block(64, 64), nn.MaxPool2d(2),
            *_conv_block(64, 128),
        )  # fmt: skip
        self.classifier = nn.Linear(self.num_features, 10)
        if weights is not None:
            files.load(self, files.read(Path(weights)), Path(weights))
            self.weights_file = Path(weights)
            self.weights_sha256 = files.verify_sha256(Path(weights))
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        x = from_uint8(self._resize(pixels.float()))
        pooled = self.layers(x).mean(dim=(2, 3))  # [B, 128]
        return {"pooled": pooled, "logits": self.classifier(pooled)}

    def _resize(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (32, 32):  # 28 padded by 2 on each side
            return x[:, :, 2:-2, 2:-2]
        if x.shape[-2:] != (self.side, self.side):
            return F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        return x


def _conv_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
