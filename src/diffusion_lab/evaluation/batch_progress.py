"""Progress within a batch of images that a quantity evaluates many times."""

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.reporting.progress import Advance


class BatchProgress:
    """Progress of a batch in completed images, estimated from the number of evaluations of the denoiser.

    num_images: number of images in the batch.
    num_evaluations: typical number of evaluations of the denoiser for an image; None if it is unknown.
    advance: function that adds completed images to a progress display.
    """

    def __init__(self, num_images: int, num_evaluations: int | None, advance: Advance) -> None:
        self.num_images, self.num_evaluations, self.advance = num_images, num_evaluations, advance
        self.num_done = self.num_shown = 0

    def counts(self, denoiser: DenoiserLike) -> DenoiserLike:
        """Return a denoiser with the same output that reports each evaluation."""

        def counted(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
            estimate = denoiser(x_t, t, condition)
            self.num_done += 1
            if self.num_evaluations is not None:
                self._show(min(self.num_images * self.num_done // self.num_evaluations, self.num_images - 1))
            return estimate

        return counted

    def finish(self) -> None:
        self._show(self.num_images)

    def _show(self, num_images: int) -> None:
        self.advance(num_images - self.num_shown)
        self.num_shown = num_images
