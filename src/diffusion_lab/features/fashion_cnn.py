"""The network whose weights are in this repository."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features

FASHION_CNN_WEIGHTS = Path(__file__).with_name("fashion_cnn.pt")


class FashionCNN(Features):
    """Convolutional classifier of Fashion-MNIST; its features are the 128 means of its last convolution.

    Trained on the 60,000 training images by `src/train_fashion_cnn.py`, which also wrote the weights that ship here
    and their accuracy on the 10,000 test images. Images of other sides: the middle 28 pixels if larger by padding
    alone (32), else resized.
    """

    name = "fashion_cnn"
    num_features = 128
    channels = (1,)
    outputs = ("pooled", "logits")
    num_classes = 10
    resize = "to 28: middle of 32, else bilinear with antialiasing"
    side = 28

    def __init__(self, weights: str | Path | None = FASHION_CNN_WEIGHTS) -> None:
        """weights: a file that train_fashion_cnn.py wrote; None starts untrained."""
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, 32), *_convolution(32, 32), nn.MaxPool2d(2),
            *_convolution(32, 64), *_convolution(64, 64), nn.MaxPool2d(2),
            *_convolution(64, 128),
        )  # fmt: skip
        self.classifier = nn.Linear(self.num_features, 10)
        if weights is not None:
            files.load(self, files.read(Path(weights)), Path(weights))
            self.weights_sha256 = files.checked_sha256(Path(weights), None)
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self._fitted(pixels.float()) / 127.5 - 1
        pooled = self.layers(x).mean(dim=(2, 3))  # [B, 128]
        return {"pooled": pooled, "logits": self.classifier(pooled)}

    def _fitted(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (32, 32):  # 28 padded by 2 on each side
            return x[:, :, 2:-2, 2:-2]
        if x.shape[-2:] != (self.side, self.side):
            return F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        return x


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
