"""Compare all posterior samplers with exact posteriors, and write docs/posteriors.md.

    PYTHONPATH=tests python benchmarks/posteriors.py

The data are N(0, I), a Gaussian with a full covariance, and a mixture of Gaussians, in 8 and 64 dimensions. Their exact
denoisers, and their posteriors given a linear measurement, have a closed form. All methods draw 4,000 samples with the
same noise. The results of each case are stored in a JSON file, from which an interrupted run continues.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from diffusion_lab.inverse_problems import (
    DDNM,
    DDRM,
    DPS,
    MMPS,
    AreaDownsampling,
    BicubicDownsampling,
    CompressedSensing,
    GaussianBlur,
    Grayscale,
    IdentityOperator,
    Inpainting,
    LinearOperator,
    MotionBlur,
    PiGDM,
    PosteriorSampler,
    RePaint,
    Replace,
)
from diffusion_lab.process import CosineSchedule, GaussianProcess
from diffusion_lab.samplers import DDIM, NoClipping
from support.exact_posteriors import BatchNoise, Errors, ExactDenoiser, MixtureOfGaussians, measured

DATA = {
    "N(0, I)": MixtureOfGaussians.isotropic,
    "a Gaussian with a full covariance": MixtureOfGaussians.correlated,
    "a mixture of three Gaussians": MixtureOfGaussians.mixture,
}
SHAPES = {8: (1, 2, 4), 64: (1, 8, 8)}
NOISES = (0.0, 0.2)
NUM_STEPS = 100
ROOT = Path(__file__).parents[1]


def operators(size: int) -> dict[str, LinearOperator]:
    """Return the operators for images with `size` values; color images have 12 values."""
    shape = SHAPES[size]
    right = torch.zeros(shape[1:], dtype=torch.bool)
    right[:, shape[2] // 2 :] = True
    of_both_sizes: dict[str, LinearOperator] = {
        "inpainting, right half": Inpainting(shape, right),
        "area, factor 2": AreaDownsampling(shape, 2),
        "compressed sensing, half": CompressedSensing(shape, 0.5),
        "Gaussian blur, std 0.6": GaussianBlur(shape, 0.6),
    }
    if size > 8:  # the other operators take another hour
        return of_both_sizes
    return of_both_sizes | {
        "bicubic, factor 2": BicubicDownsampling(shape, 2),
        "colorization": Grayscale((3, 2, 2)),
        "motion blur, 2.5 pixels": MotionBlur(shape, 2.5, 30.0),
        "denoising": IdentityOperator(shape),
    }


def methods() -> dict[str, tuple[PosteriorSampler, float]]:
    """Return the methods by the heads of their columns, each with the eta of DDIM."""
    return {
        "`mmps`": (MMPS(num_iterations=10), 0.0),
        "`pigdm`": (PiGDM(), 0.0),
        "`pigdm`, paper's weights": (PiGDM(step_weights="paper"), 1.0),
        "`dps`": (DPS(), 1.0),
        "`ddnm`": (DDNM(), 1.0),
        "`ddrm`": (DDRM(), 0.0),
        "`replace`": (Replace(), 1.0),
        "`repaint`": (RePaint(jump_length=5, num_resamples=5), 1.0),
    }


def errors_of_case(
    data: MixtureOfGaussians, operator: LinearOperator, noise_std: float, count: int
) -> dict[str, Errors]:
    """Return the errors of all methods, and those of exact samples and of the exact conditional denoiser."""
    process, shape = GaussianProcess(CosineSchedule()), operator.image_shape
    measurement = measured(data, operator, noise_std, count)
    posterior = data.posterior(measurement)
    ddim = {eta: DDIM(process, NUM_STEPS, eta=eta, clipping=NoClipping()) for eta in (0.0, 1.0)}
    found = {"Monte Carlo": Errors.expected(count, posterior, data)}
    for eta, sampler in ddim.items():
        samples = sampler.sample(ExactDenoiser(process, posterior), BatchNoise((count, *shape)))
        found[f"exact, eta {eta:g}"] = Errors.of(samples, posterior, data)
    denoiser = ExactDenoiser(process, data)
    for name, (method, eta) in methods().items():
        if isinstance(method, RePaint) and noise_std > 0:
            continue
        started = time.perf_counter()
        samples = method.sample(ddim[eta], denoiser, measurement, BatchNoise((count, *shape)))
        found[name] = Errors.of(samples, posterior, data)
        print(f"    {name:26} {found[name]}  {time.perf_counter() - started:.1f} s", flush=True)
    return found


def cell(errors: dict[str, float] | None, *, weights: bool) -> str:
    """Return a table cell with errors in percent."""
    if errors is None:
        return "refused"
    parts = [errors["mean"], errors["covariance"], *([errors["weights"]] if weights else [])]
    return " / ".join(f"{100 * part:.1f}" for part in parts)


def table(rows: dict[str, dict[str, dict[str, float]]], *, weights: bool) -> list[str]:
    """Return the lines of a Markdown table.  rows: name of the case -> name of the column -> errors."""
    heads = ["Monte Carlo", "exact, eta 0", "exact, eta 1", *methods()]
    lines = [f"| operator, noise | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for case, found in rows.items():
        lines.append(f"| {case} | {' | '.join(cell(found.get(head), weights=weights) for head in heads)} |")
    return lines


def document(results: dict[str, dict[str, dict[str, float]]], count: int) -> str:
    """Return docs/posteriors.md: the text before the first table is kept, and all tables are replaced."""
    path = ROOT / "docs" / "posteriors.md"
    head = path.read_text().partition("\n## Posteriors of ")[0] if path.exists() else "# Exact posteriors"
    lines = [head.rstrip()]
    for size in SHAPES:
        for name in DATA:
            prefix = f"{size}, {name}, "
            rows = {case.removeprefix(prefix): found for case, found in results.items() if case.startswith(prefix)}
            if rows:
                lines += ["", f"## Posteriors of {name}, {size} dimensions", ""]
                lines += table(rows, weights="mixture" in name)
    version = torch.__version__.partition("+")[0]
    return "\n".join(lines) + f"\n\n*{count:,} samples, {NUM_STEPS} steps, torch {version}.*\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=4000)
    parser.add_argument("--results", type=Path, default=Path("posteriors.json"), help="JSON file with finished cases")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for size in SHAPES:
        for data_name, build in DATA.items():
            for operator_name, operator in operators(size).items():
                for noise_std in NOISES:
                    case = f"{size}, {data_name}, {operator_name}, {noise_std:g}"
                    is_invertible = bool(operator.measurement_shape == operator.image_shape)
                    if case in results or (noise_std == 0 and is_invertible and not isinstance(operator, Inpainting)):
                        continue  # without noise, an invertible operator determines the image
                    print(case, flush=True)
                    found = errors_of_case(build(operator.image_shape), operator, noise_std, arguments.num_samples)
                    results[case] = {name: asdict(errors) for name, errors in found.items()}
                    arguments.results.write_text(json.dumps(results))
    (ROOT / "docs" / "posteriors.md").write_text(document(results, arguments.num_samples))


if __name__ == "__main__":
    main()
