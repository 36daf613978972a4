"""DINOv2 and CLIP from `transformers`.

Metrics that compare the features of these networks agree better with human judgment than the FID (Stein et al. 2023;
Jayasumana et al. 2024).
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError
from diffusion_lab.paths import install_command

VIT_L_14 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}


class VisionTransformer(Features):
    """Base class of DINOv2 and CLIP, which loads weights and normalizes images.

    Images are resized as by PIL, which the code of both papers uses: bicubic with antialiasing. Gray images are
    repeated to three channels.
    """

    channels = (1, 3)
    hub_name: str
    hub_file: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    architecture: dict[str, int]

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """weights: copy of the file `hub_file` on the Hugging Face hub, or the same weights as a `.safetensors` file.

        If weights is None, the file is read from the local cache of the hub, or downloaded if it is not cached.
        sha256: first digits of the SHA-256 that the file must have.
        Raises FeaturesUnavailableError if the library or the weights are missing.
        """
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise FeaturesUnavailableError(
                f"features={self.name} requires the library transformers; run {install_command('features')}."
            ) from error
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        path = self._download() if weights is None else Path(weights)
        state = files.read(path)
        self.weights_file = path
        self.weights_sha256 = files.verify_sha256(path, sha256)
        self.network = self._load_network(transformers, state, path)
        self.register_buffer("shift", torch.tensor(self.mean).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(self.std).view(3, 1, 1))
        self.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def network_and_config(cls, transformers: Any) -> tuple[Any, Any]:
        """Return the network class in `transformers`, and the configuration of the network."""

    def is_network_key(self, key: str) -> bool:
        """Return whether a key of the weights file belongs to the network, and not to a text encoder, for example."""
        return True

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Resize and normalize uint8 images for the network: float32 [B, 3, side, side]."""
        x = pixels.float()
        for size in ((x.shape[2], self.side), (self.side, self.side)):  # as PIL: width first, rounded after each step
            x = F.interpolate(x, size, mode="bicubic", antialias=True).add(0.5).floor().clamp(0, 255)
        return (x.expand(-1, 3, -1, -1) / 255 - self.shift) / self.scale  # type: ignore[operator]

    def _load_network(self, transformers: Any, state: dict[str, Tensor], path: Path) -> nn.Module:
        """Build the network with its weights.  `transformers` translates the keys of files from its older versions."""
        network_class, config = self.network_and_config(transformers)
        network, report = network_class.from_pretrained(
            None,
            config=config,
            state_dict={key: value for key, value in state.items() if self.is_network_key(key)},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # raised below, because the library's error has many lines
            output_loading_info=True,
        )
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if keys := sorted(report[kind], key=str):
                raise files.incompatible_weights(path, f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[0]}")
        assert isinstance(network, nn.Module)
        return network

    def _download(self) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.hub_name, self.hub_file))
        except Exception as error:  # the library raises errors of many types: offline, no access, a full disk
            raise FeaturesUnavailableError(
                f"features={self.name} requires {self.hub_file} of {self.hub_name}, which is not in the local cache "
                "and could not be downloaded; run once with network access, or set features.weights (in Python: "
                f"{type(self).__name__}(weights=...)) to a copy of it."
            ) from error


class DINOv2(VisionTransformer):
    """1024 features of DINOv2 ViT-L/14 (Oquab et al. 2023), recommended by Stein et al. (2023).

    The features are the class token after the last normalization (dgm_eval/models/dinov2.py of layer6ai-labs/dgm-eval).
    """

    name = "dinov2"
    num_features = 1024
    hub_name, hub_file = "facebook/dinov2-large", "model.safetensors"
    side = 224
    resize = "to 224: bicubic with antialiasing, as by PIL"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    architecture = VIT_L_14 | {"image_size": 518}

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """See `VisionTransformer`."""
        super().__init__(weights, sha256)
        embeddings: Any = self.network.embeddings
        positions = self.interpolate_positions(embeddings.position_embeddings, self.side // embeddings.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    @staticmethod
    def interpolate_positions(positions: Tensor, side: int) -> Tensor:
        """Interpolate position embeddings to side x side patches: [1, 1 + S * S, C] -> [1, 1 + side * side, C].

        This follows dinov2/models/vision_transformer.py of facebookresearch/dinov2, with which published results were
        computed. `transformers` uses a slightly different scale, because it does not add 0.1 to `side`.
        """
        old_side = round((positions.shape[1] - 1) ** 0.5)
        grid = positions[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)  # [1, C, S, S]
        scale = (side + 0.1) / old_side
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")  # [1, C, side, side]
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    @classmethod
    def network_and_config(cls, transformers: Any) -> tuple[Any, Any]:
        return transformers.Dinov2Model, transformers.Dinov2Config(**cls.architecture)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"pooled": self.network(self.preprocess(pixels)).last_hidden_state[:, 0]}


class CLIP(VisionTransformer):
    """Image embeddings of CLIP ViT-L/14 at 336 x 336 pixels (Radford et al. 2021): 768 features with norm 1.

    Jayasumana et al. (2024) compute CMMD from these embeddings (cmmd/embedding.py, io_util.py and distance.py of
    google-research/google-research).
    """

    name = "clip"
    num_features = 768
    # Not model.safetensors: mirrors of this repository do not have it.
    hub_name, hub_file = "openai/clip-vit-large-patch14-336", "pytorch_model.bin"
    side = 336
    resize = "to 336: bicubic with antialiasing, as by PIL"
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    architecture = VIT_L_14 | {"image_size": 336, "intermediate_size": 4096, "projection_dim": 768}

    @classmethod
    def network_and_config(cls, transformers: Any) -> tuple[Any, Any]:
        return transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**cls.architecture)

    def is_network_key(self, key: str) -> bool:
        return key.startswith(("vision_model.", "visual_projection.")) and not key.endswith("position_ids")

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"pooled": F.normalize(self.network(self.preprocess(pixels)).image_embeds, dim=1)}
