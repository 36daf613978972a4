import pytest
import torch

from diffusion_lab.evaluation.reconstruction import Reconstruction
from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, NoClipping, Sampler
from support.oracles import GaussianOracle

PROCESS = GaussianProcess(CosineSchedule(1000))


def test_the_reconstruction_error_falls_with_the_number_of_steps() -> None:
    x_0 = 0.3 + 0.5 * torch.randn(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    errors = []
    for num_steps in (10, 40, 160):
        reconstruction = Reconstruction(DDIM(PROCESS, num_steps, clipping=NoClipping()))
        noise = ImageNoise(range(5), (3, 8, 6))
        error = reconstruction(GaussianOracle(PROCESS, 0.3, 0.5), x_0, Condition(), noise)
        assert error.shape == (5, 1)
        errors.append(float(error.mean()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # first order: four times the steps, a quarter of the error
    assert errors[2] < 0.01


@pytest.mark.parametrize(
    ("sampler", "got"), [(DDIM(PROCESS, eta=0.5), r"eta=0\.5"), (Ancestral(PROCESS), "Ancestral")], ids=["eta", "other"]
)
def test_stochastic_samplers_are_refused(sampler: Sampler, got: str) -> None:
    with pytest.raises(ValueError, match=f"`sampler` must be ddim with eta=0 to encode images, got {got}"):
        Reconstruction(sampler)
