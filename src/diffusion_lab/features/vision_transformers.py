"""Transformers whose features see more of what people see: DINOv2 and CLIP, built by the library `transformers`."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.features import weights as files
from diffusion_lab.features.features import Features, FeaturesUnavailableError

VIT_L_14 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}


class VisionTransformer(Features):
    """What DINOv2 and CLIP share: where their weights come from, and how bytes become their input.

    Images are resized as both papers' code has PIL do it: bicubic with antialiasing. Grey images are repeated to three
    channels.
    """

    channels = (1, 3)
    hub_name: str
    hub_file: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    architecture: dict[str, int]

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """weights: a copy of the hub's file, or a `.safetensors` of it; None is the hub's cache, then a download.

        sha256: what the file's must begin with.  Raises FeaturesUnavailableError where library or weights are missing.
        """
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise FeaturesUnavailableError(
                f"features={self.name} needs the library transformers: pip install -e '.[features]'."
            ) from error
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        path = self._downloaded() if weights is None else Path(weights)
        state = files.read(path)
        self.weights_sha256 = files.checked_sha256(path, sha256)
        self.network = self._loaded(transformers, state, path)
        self.register_buffer("shift", torch.tensor(self.mean).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(self.std).view(3, 1, 1))
        self.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def described(cls, transformers: Any) -> tuple[Any, Any]:
        """The library's class of the network, and its configuration."""

    def is_ours(self, key: str) -> bool:
        """Whether a tensor of the file belongs to the network; others are of parts that see no images."""
        return True

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the network sees of uint8 images: [B, 3, side, side]."""
        x = pixels.float()
        for size in ((x.shape[2], self.side), (self.side, self.side)):  # PIL takes columns first, and rounds both times
            x = F.interpolate(x, size, mode="bicubic", antialias=True).add(0.5).floor().clamp(0, 255)
        return (x.expand(-1, 3, -1, -1) / 255 - self.shift) / self.scale  # type: ignore[operator]

    def _loaded(self, transformers: Any, state: dict[str, Tensor], path: Path) -> nn.Module:
        """The network with its weights; the library knows by which names its older versions called them."""
        network, config = self.described(transformers)
        loaded, report = network.from_pretrained(
            None,
            config=config,
            state_dict={key: value for key, value in state.items() if self.is_ours(key)},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # or the library's own error, of many lines
            output_loading_info=True,
        )
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if keys := sorted(report[kind], key=str):
                words = kind.replace("_", " ")
                raise files.another_network(path, f"{len(keys)} {words}, such as {keys[0]}")
        assert isinstance(loaded, nn.Module)
        return loaded

    def _downloaded(self) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.hub_name, self.hub_file))
        except Exception as error:  # offline, refused, or a full disk: the library has many
            raise FeaturesUnavailableError(
                f"features={self.name}: {self.hub_file} of {self.hub_name} on the Hugging Face hub is neither in its "
                "cache nor within reach (no network?): run once with network, or set features.weights to a copy of it."
            ) from error


class DINOv2(VisionTransformer):
    """1024 features of DINOv2 ViT-L/14 (Oquab et al. 2023), over which Stein et al. (2023) measure distances.

    The class token after the last normalisation (dgm_eval/models/dinov2.py of layer6ai-labs/dgm-eval).
    """

    name = "dinov2"
    num_features = 1024
    hub_name, hub_file = "facebook/dinov2-large", "model.safetensors"
    side = 224
    resize = "to 224: bicubic with antialiasing, as by PIL"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    architecture = VIT_L_14 | {"image_size": 518}

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None) -> None:
        """As every transformer's."""
        super().__init__(weights, sha256)
        embeddings: Any = self.network.embeddings
        positions = self.resampled(embeddings.position_embeddings, self.side // embeddings.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    @staticmethod
    def resampled(positions: Tensor, side: int) -> Tensor:
        """A table of positions for side x side patches: [1, 1 + S * S, C] -> [1, 1 + side * side, C].

        As in dinov2/models/vision_transformer.py of facebookresearch/dinov2, whose scale has a tenth of a patch more
        than `transformers` takes: done beforehand, since published distances are over that code's features.
        """
        old_side = round((positions.shape[1] - 1) ** 0.5)
        grid = positions[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)  # [1, C, S, S]
        scale = (side + 0.1) / old_side
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")  # [1, C, side, side]
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    @classmethod
    def described(cls, transformers: Any) -> tuple[Any, Any]:
        return transformers.Dinov2Model, transformers.Dinov2Config(**cls.architecture)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"pooled": self.network(self.normalised(pixels)).last_hidden_state[:, 0]}


class CLIP(VisionTransformer):
    """768 image embeddings of CLIP ViT-L/14 at 336 (Radford et al. 2021), of length 1.

    Jayasumana et al. (2024) make CMMD of them (cmmd/embedding.py, io_util.py and distance.py of
    google-research/google-research).
    """

    name = "clip"
    num_features = 768
    # Copies of this repository list no safetensors.
    hub_name, hub_file = "openai/clip-vit-large-patch14-336", "pytorch_model.bin"
    side = 336
    resize = "to 336: bicubic with antialiasing, as by PIL"
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    architecture = VIT_L_14 | {"image_size": 336, "intermediate_size": 4096, "projection_dim": 768}

    @classmethod
    def described(cls, transformers: Any) -> tuple[Any, Any]:
        return transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**cls.architecture)

    def is_ours(self, key: str) -> bool:
        return key.startswith(("vision_model.", "visual_projection.")) and not key.endswith("position_ids")

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"pooled": F.normalize(self.network(self.normalised(pixels)).image_embeds, dim=1)}
