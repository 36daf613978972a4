"""Image -> feature vector. The networks behind the distances."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FASHION_CNN_WEIGHTS = Path(__file__).with_name("fashion_cnn.pt")


class FeaturesUnavailableError(FileNotFoundError):
    """A feature network's weights are neither here nor within reach; the message says where they were looked for."""


class Features(nn.Module, ABC):
    """uint8 images [B, C, H, W] -> float32 features [B, num_features].  Frozen, always in evaluation mode."""

    name: str
    num_features: int
    channels: tuple[int, ...]

    @abstractmethod
    def extract(self, pixels: Tensor) -> Tensor:
        """Features of uint8 images."""

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8, got {pixels.dtype}: quantise images with to_uint8 first.")
        if pixels.shape[1] not in self.channels:
            raise ValueError(f"{self.name} takes images of {self.channels} channels, got {pixels.shape[1]}.")
        with torch.autocast(pixels.device.type, enabled=False):  # half precision moves features by half a percent
            return self.extract(pixels)

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as grey levels: rounded and clamped, so that a level survives the way there and back.

    images: float [B, C, H, W].  Returns uint8 of the same shape.
    Raises ValueError for values that are not finite: they would be counted as black.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite, got NaN or infinity: the network or its sampler has diverged.")
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class FashionCNN(Features):
    """Convolutional classifier of Fashion-MNIST; features are the 128 means of its last convolution.

    Trained on the 60,000 training images by `src/train_fashion_cnn.py`, which also wrote the weights that ship here
    and their accuracy on the 10,000 test images. Images of other sides: the middle 28 pixels if larger by padding
    alone (32), else resized.
    """

    name = "fashion_cnn"
    num_features = 128
    channels = (1,)
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
            path = Path(weights)
            if not path.is_file():
                raise FeaturesUnavailableError(f"features.weights must be a file of fashion_cnn weights, got {path}.")
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> Tensor:
        x = self._fitted(pixels.float()) / 127.5 - 1
        features: Tensor = self.layers(x).mean(dim=(2, 3))  # [B, 128]
        return features

    def _fitted(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (32, 32):  # 28 padded by 2 on each side
            return x[:, :, 2:-2, 2:-2]
        if x.shape[-2:] != (self.side, self.side):
            return F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        return x


class Inception(Features):
    """The Inception network of published FIDs, 2048 features, with TensorFlow's rule of resizing (torch-fidelity).

    Grey images are repeated to three channels.
    """

    name = "inception"
    num_features = 2048
    channels = (1, 3)
    file_name = "weights-inception-2015-12-05-6726825d.pth"

    def __init__(self, weights: str | Path | None = None) -> None:
        """weights: a local copy of torch-fidelity's file; None is torch's own cache, then a download.

        Raises FeaturesUnavailableError where there is neither a file nor a network.
        """
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = None if weights is None else Path(weights)
        if path is not None and not path.is_file():
            raise FeaturesUnavailableError(f"features.weights must be torch-fidelity's {self.file_name}, got {path}.")
        cached = Path(torch.hub.get_dir(), "checkpoints", self.file_name)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=path and str(path)
            )
        except OSError as error:
            raise FeaturesUnavailableError(
                f"Inception's weights are not at {cached} and could not be downloaded ({error}); put torch-fidelity's "
                f"{self.file_name} there, or set features.weights to a copy of it."
            ) from error
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> Tensor:
        (features,) = self.network(pixels.expand(-1, 3, -1, -1))
        return features.float()  # type: ignore[no-any-return]


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
