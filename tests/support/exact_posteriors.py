"""Mixtures of Gaussians with full covariances: their exact denoisers, and their exact posteriors given measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.inverse_problems import LinearOperator, Measurement
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from support.every_operator import matrix_of


@dataclass(frozen=True, eq=False)
class MixtureOfGaussians:
    """The distribution of images that are samples of one of K Gaussians with means m_k and covariances V_k.

    image_shape: shape of one image, [C, H, W], with N values.
    weights: [K].  means: [K, N].  covariances: [K, N, N].  All are float64; a weight may be 0.
    """

    image_shape: tuple[int, int, int]
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @staticmethod
    def isotropic(image_shape: tuple[int, int, int]) -> "MixtureOfGaussians":
        """Return N(0, I)."""
        size = torch.Size(image_shape).numel()
        one = torch.ones(1, dtype=torch.float64)
        return MixtureOfGaussians(image_shape, one, torch.zeros(1, size).double(), torch.eye(size).double()[None])

    @staticmethod
    def correlated(image_shape: tuple[int, int, int]) -> "MixtureOfGaussians":
        """Return a Gaussian with means around 0.3, standard deviations of 0.4 to 0.6, and correlated neighbors."""
        generator, size = torch.Generator().manual_seed(0), torch.Size(image_shape).numel()
        mean = 0.3 + 0.2 * torch.randn(size, dtype=torch.float64, generator=generator)
        std = 0.4 + 0.2 * torch.rand(size, dtype=torch.float64, generator=generator)
        covariance = std[:, None] * correlation(image_shape) * std
        return MixtureOfGaussians(image_shape, torch.ones(1).double(), mean[None], covariance[None])

    @staticmethod
    def mixture(image_shape: tuple[int, int, int]) -> "MixtureOfGaussians":
        """Return a mixture of three Gaussians with correlated neighbors, whose means differ most in the last column.

        Measurements of a few values do not determine the mode of an image.
        """
        width = image_shape[2]
        profile = (torch.arange(width, dtype=torch.float64) / (width - 1)).expand(image_shape).flatten()
        means = torch.tensor([-0.8, 0.1, 0.7], dtype=torch.float64)[:, None] * profile
        scales = torch.tensor([0.4, 0.36, 0.44], dtype=torch.float64).square().view(3, 1, 1)
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        return MixtureOfGaussians(image_shape, weights, means, scales * correlation(image_shape))

    @property
    def mean(self) -> Tensor:
        """The mean, [N]."""
        return self.weights @ self.means

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance, [N, N]."""
        differences = self.means - self.mean
        return torch.einsum(
            "k,kij->ij", self.weights, self.covariances + differences[:, :, None] * differences[:, None]
        )

    def posterior(self, measurement: Measurement) -> "MixtureOfGaussians":
        """Return the distribution of the first image of a batch given its measurement."""
        matrix, variance = matrix_of(measurement.operator), measurement.noise_std**2
        y = measurement.y[0].double().flatten()
        # Rows of an operator that measure nothing, as those in a hole, have neither signal nor noise.
        is_measured = matrix.abs().sum(dim=1) > 0
        matrix, y = matrix[is_measured], y[is_measured]
        noise = variance * torch.eye(len(matrix), dtype=torch.float64)
        covariances = matrix @ self.covariances @ matrix.mT + noise  # of y in each mode: [K, M, M]
        gains = self.covariances @ matrix.mT @ torch.linalg.pinv(covariances, hermitian=True)  # [K, N, M]
        residuals = y - self.means @ matrix.mT
        squared = torch.einsum("km,kmn,kn->k", residuals, torch.linalg.pinv(covariances, hermitian=True), residuals)
        log_weights = self.weights.log() - (torch.logdet(covariances) + squared) / 2
        means = self.means + torch.einsum("knm,km->kn", gains, residuals)
        remaining = self.covariances - gains @ matrix @ self.covariances
        return MixtureOfGaussians(self.image_shape, log_weights.softmax(0), means, (remaining + remaining.mT) / 2)

    @cached_property
    def _eigenvectors(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues, [K, N], and eigenvectors, [K, N, N], of the covariances."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values.clamp(min=0), vectors

    def sample(self, num_samples: int, seed: int = 0) -> Tensor:
        """Return samples, float64 [num_samples, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        modes = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        values, vectors = self._eigenvectors
        roots = vectors * values.sqrt()[:, None]
        noise = torch.randn(num_samples, self.means.shape[1], dtype=torch.float64, generator=generator)
        return (self.means[modes] + torch.einsum("bij,bj->bi", roots[modes], noise)).view(-1, *self.image_shape)

    def responsibilities(self, images: Tensor) -> Tensor:
        """Return the probability that each image belongs to each mode, [B, K].  images: [B, C, H, W]."""
        one = torch.ones(len(images), dtype=torch.float64)
        log_joint: Tensor = self._posterior_of_modes(images.double().flatten(1), one, 0.0 * one)[0]
        return log_joint.softmax(1)

    def _posterior_of_modes(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of x_t [B, N] and each mode up to a constant, [B, K], and its E[x_0 | x_t, mode].

        alpha, sigma: coefficients at one time for all images, [B].
        """
        values, vectors = (each.to(x_t) for each in self._eigenvectors)
        a, s = alpha[0].to(x_t), sigma[0].to(x_t)
        variances = (a**2 * values + s**2).clamp(min=1e-12)
        whitened = torch.einsum("kij,bki->bkj", vectors, x_t[:, None] - a * self.means.to(x_t))
        log_density = -(whitened**2 / variances + variances.log()).sum(2) / 2
        expected = self.means.to(x_t) + torch.einsum("kij,bkj->bki", vectors, a * values / variances * whitened)
        return log_density + self.weights.to(x_t).log(), expected


def correlation(image_shape: tuple[int, int, int]) -> Tensor:
    """Return the correlations of the N values of an image, exp(-distance in pixels / 2), float64 [N, N]."""
    axes = [torch.arange(size, dtype=torch.float64) for size in image_shape]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    return torch.exp(-torch.cdist(positions, positions) / 2)


@dataclass(frozen=True, eq=False)
class ExactDenoiser:
    """E[x_0 | x_t] of a mixture of Gaussians, for one time for all images of a batch."""

    process: GaussianProcess
    data: MixtureOfGaussians

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        coefficients = self.process.unbounded.schedule.coefficients(t)
        log_joint, expected = self.data._posterior_of_modes(x_t.flatten(1), *coefficients)
        return Estimate(torch.einsum("bk,bki->bi", log_joint.softmax(1), expected).view_as(x_t))


class BatchNoise:
    """Standard normal noise of a batch in float64, from one stream for all images."""

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        self._shape, self._generator = tuple(shape), torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        return torch.randn(self._shape, dtype=torch.float64, generator=self._generator)


@dataclass(frozen=True)
class Errors:
    """Distances of samples to a posterior.

    mean: root mean square error of the mean over pixels, divided by the root mean square std of the data.
    covariance: Frobenius norm of the error of the covariance, divided by that of the covariance of the data.
    weights: largest error of the weight of a mode.
    """

    mean: float
    covariance: float
    weights: float

    @staticmethod
    def of(samples: Tensor, posterior: MixtureOfGaussians, data: MixtureOfGaussians) -> "Errors":
        """Compare samples [B, C, H, W] with the posterior of images of the distribution `data`."""
        flat = samples.flatten(1).double()
        scale = data.covariance.diagonal().mean().sqrt()
        mean = (flat.mean(0) - posterior.mean).square().mean().sqrt() / scale
        covariance = torch.linalg.norm(flat.mT.cov() - posterior.covariance) / torch.linalg.norm(data.covariance)
        weights = (data.responsibilities(flat).mean(0) - posterior.weights).abs().max()
        return Errors(float(mean), float(covariance), float(weights))

    @staticmethod
    def expected(num_samples: int, posterior: MixtureOfGaussians, data: MixtureOfGaussians) -> "Errors":
        """Return the Monte Carlo errors: the root mean square of each error for independent exact samples."""
        covariance, size = posterior.covariance, len(data.mean)
        mean = (covariance.trace() / num_samples / size).sqrt() / data.covariance.diagonal().mean().sqrt()
        # exact for Gaussians, whose fourth moments are known
        squared = (covariance.trace() ** 2 + covariance.square().sum()) / num_samples
        weights = (posterior.weights * (1 - posterior.weights) / num_samples).sqrt().max()
        return Errors(float(mean), float(squared.sqrt() / torch.linalg.norm(data.covariance)), float(weights))


def measured(
    data: MixtureOfGaussians, operator: LinearOperator, noise_std: float, batch_size: int, seed: int = 2
) -> Measurement:
    """Return the measurement of one image of the data, repeated for all images of a batch, float64."""
    image = data.sample(1, seed)
    noise = torch.randn(
        1, *operator.measurement_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    y = operator.forward(image) + noise_std * noise
    return Measurement(operator, y.expand(batch_size, *y.shape[1:]), noise_std)
