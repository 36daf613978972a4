"""Images -> noise -> images: the reconstruction error of DDIM encoding."""

from dataclasses import dataclass

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import DDIM, GivenNoise, Noise, Sampler


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction error of images that DDIM encodes as noise and decodes (Song et al. 2021, section 5.4, Table 2).

    Raises ValueError unless the sampler is DDIM with eta=0, the only sampler that can run from images to noise.
    """

    sampler: Sampler

    name = "reconstruction_rmse"
    choice = "reconstruction"
    meaning = "error of the round trip from images to noise and back"
    num_terms = 1

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, DDIM) or self.sampler.eta > 0:
            got = f"eta={self.sampler.eta}" if isinstance(self.sampler, DDIM) else type(self.sampler).__name__
            raise ValueError(f"`sampler` must be ddim with eta=0 to encode images, got {got}.")

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations of the denoiser for one image, from the image to noise and back."""
        return 2 * self.sampler.num_evaluations

    def __call__(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Return the root mean square error of each image [B, C, H, W] after the round trip: [B, 1].  noise: unused."""
        return (self.images(denoiser, x_0, condition) - x_0).square().mean(dim=(1, 2, 3)).sqrt()[:, None]

    def images(self, denoiser: DenoiserLike, x_0: Tensor, condition: Condition) -> Tensor:
        """Return the reconstructed images, [B, C, H, W]."""
        assert isinstance(self.sampler, DDIM)
        latent = self.sampler.encode(denoiser, x_0, condition)
        return self.sampler.sample(denoiser, GivenNoise(latent), condition)
