"""Linear inverse problems y = A x_0 + noise, and samplers of the posterior of x_0 given y.

A command combines four objects, each from its own configuration group:

1. A `LinearOperator`, such as `Inpainting`, `AreaDownsampling` or `GaussianBlur`. The first argument is the shape of an
   image, [C, H, W], and `Inpainting` also takes the hole, so that a configuration node has `_partial_: true`, and the
   command calls operator(image_shape) or operator(image_shape, hole=hole).
2. A `Measurement` of a batch: the operator, y, and the standard deviation of the noise in y. Images and y have the
   scale [-1, 1]. `Measurement.of` simulates y from images, with noise from a stream of each image.
3. A `Sampler` and a `Denoiser` as for unconditional sampling; guidance wraps the denoiser first.
4. A `PosteriorSampler`, such as `PiGDM` or `Replace`, which samples with all of these:

    operator = AreaDownsampling(image_shape, factor=4)
    noise = ImageNoise(seeds, operator.measurement_shape, purpose=Purpose.MEASUREMENT)
    measurement = Measurement.of(operator, images, noise_std=0.05, noise=noise)
    posterior.require(sampler, measurement)                    # UserError before any work, with an example measurement
    guided = guidance(denoiser, labels)
    samples = posterior.sample(sampler, guided, measurement, ImageNoise(seeds, image_shape), condition, on_step)

`posterior.num_steps(sampler)` is the number of calls of on_step, and `posterior.num_evaluations(sampler)` the number of
evaluations of the denoiser. Each image depends on its own measurement and noise streams only. `Measurement.select`
returns a part of the batch, and `Measurement.inconsistency` the distance of images to y. Operators and posterior
samplers are dataclasses, which `fingerprints.describe` turns into plain data.

In a latent space, `Measurement(operator, y, noise_std, decode=space.decode)` measures decoded latents:
the operator and y have the shape of images. Accepted are posterior samplers that use gradients and, with
`encode=space.encode` in addition, `InpaintingNetwork`.
"""

from diffusion_lab.inverse_problems.blurs import GaussianBlur, MotionBlur
from diffusion_lab.inverse_problems.compressed_sensing import CompressedSensing
from diffusion_lab.inverse_problems.ddnm import DDNM
from diffusion_lab.inverse_problems.ddrm import DDRM
from diffusion_lab.inverse_problems.dps import DPS
from diffusion_lab.inverse_problems.inpainting_network import InpaintingNetwork
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.mmps import MMPS
from diffusion_lab.inverse_problems.operators import LinearOperator, SpectralOperator
from diffusion_lab.inverse_problems.pigdm import PiGDM
from diffusion_lab.inverse_problems.pixel_operators import Grayscale, IdentityOperator, Inpainting
from diffusion_lab.inverse_problems.posterior import ConditionalDenoiser, ConditionalPosterior, PosteriorSampler
from diffusion_lab.inverse_problems.repaint import RePaint
from diffusion_lab.inverse_problems.replace import Replace
from diffusion_lab.inverse_problems.resizing import AreaDownsampling, BicubicDownsampling
from diffusion_lab.inverse_problems.separable import SeparableOperator

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "MMPS",
    "AreaDownsampling",
    "BicubicDownsampling",
    "CompressedSensing",
    "ConditionalDenoiser",
    "ConditionalPosterior",
    "GaussianBlur",
    "Grayscale",
    "IdentityOperator",
    "Inpainting",
    "InpaintingNetwork",
    "LinearOperator",
    "Measurement",
    "MotionBlur",
    "PiGDM",
    "PosteriorSampler",
    "RePaint",
    "Replace",
    "SeparableOperator",
    "SpectralOperator",
]
