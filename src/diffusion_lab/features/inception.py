"""The network of published FIDs."""

import functools
import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError


class Inception(Features):
    """The Inception network of published FIDs, 2048 features, with TensorFlow's rule of resizing (torch-fidelity).

    Logits are those without bias, of which the Inception Score is made. Spatial features, of which sFID is, are the
    first 7 channels of the layer of 17 x 17 that TensorFlow calls mixed_6/conv (Nash et al. 2021; Dhariwal & Nichol
    2021, in evaluations/evaluator.py of openai/guided-diffusion).
    Grey images are repeated to three channels.
    """

    name = "inception"
    num_features = 2048
    channels = (1, 3)
    outputs = ("pooled", "logits", "spatial")
    resize = "to 299: bilinear on TensorFlow 1's grid, without antialiasing"
    file_name = "weights-inception-2015-12-05-6726825d.pth"
    sha256 = "6726825d"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """weights: a local copy of torch-fidelity's file; None is torch's own cache, then a download.

        sha256: what the file's must begin with.
        Raises FeaturesUnavailableError where there is neither a file nor a network, or where the file is another.
        """
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as original

        path = self._downloaded(original.URL_INCEPTION_V3) if weights is None else Path(weights)
        state = files.read(path)
        self.weights_sha256 = files.checked_sha256(path, sha256, self.sha256 if path.name == self.file_name else None)
        if not self.weights_sha256.startswith(self.sha256):
            _say_once(f"note: {path} is not {self.file_name}: numbers over it are not the FIDs of papers.")
        try:
            self.network = original.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], _as_file(state)
            )
        except RuntimeError as error:
            raise files.another_network(path, error) from error
        _speed_up(self.network)
        self._spatial: Tensor | None = None
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled, logits = self.network(pixels.expand(-1, 3, -1, -1))
        assert self._spatial is not None
        spatial, self._spatial = self._spatial, None
        return {"pooled": pooled, "logits": logits, "spatial": spatial}

    def _keep_spatial(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :7].flatten(1)  # [B, 7 * 17 * 17]

    def _downloaded(self, url: str) -> Path:
        path = Path(torch.hub.get_dir(), "checkpoints", self.file_name)
        if path.is_file():
            return path
        try:
            files.download(url, path, self.sha256)
        except OSError as error:
            raise FeaturesUnavailableError(
                f"features=inception: {self.file_name} is not at {path} and could not be fetched from {url} ({error}); "
                "put it there, or set features.weights to a copy of it."
            ) from error
        return path


def _speed_up(network: nn.Module) -> None:
    """The same function for half as much time on a CPU: features move by less than a millionth of their size."""
    for layer in list(network.modules()):
        if isinstance(getattr(layer, "bn", None), nn.BatchNorm2d):
            # A batch norm that no longer learns is a scale and a shift of the convolution before it.
            fused: nn.Module = fuse_conv_bn_eval(layer.conv.double(), layer.bn.double())  # type: ignore
            layer.conv, layer.bn = fused.float(), nn.Identity()
    network.to(memory_format=torch.channels_last)


def _as_file(state: dict[str, Tensor]) -> io.BytesIO:
    """The weights once more as torch-fidelity reads them: it would run what the pickle of a person's file holds."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@functools.cache
def _say_once(note: str) -> None:
    print(note, file=sys.stderr)
