"""The forms in which `DiffusionModule.sample` takes its arguments -> the objects that it works with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from diffusion_lab import samplers
from diffusion_lab.contracts import require_instance
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import Sampler

SamplerChoice = Sampler | type[Sampler] | str
"""A sampler, or the class or name of a sampler that is built with its default settings, such as DDIM or "ddim"."""


def as_seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    """Return the seeds of the images; a number n stands for the seeds 0 to n - 1."""
    if isinstance(seeds, bool) or (isinstance(seeds, int) and seeds < 1):
        raise ValueError(f"`seeds` must be a number of at least 1 or a list of seeds, got {seeds}.")
    given = range(seeds) if isinstance(seeds, int) else seeds
    if isinstance(given, range) and given and min(given) >= 0:
        return given
    numbers: Any = given.tolist() if hasattr(given, "tolist") else given
    numbers = list(numbers) if isinstance(numbers, Sequence) else []
    if not numbers or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in numbers):
        raise ValueError(f"`seeds` must be a list of whole numbers of at least 0, or their number, got {seeds}.")
    return [int(seed) for seed in numbers]


def as_guidance(guidance: Guidance | Strength | float | None) -> Guidance:
    """Return the guidance; a number is the scale of classifier-free guidance."""
    if guidance is None or isinstance(guidance, Guidance):
        return guidance or Guidance()
    if isinstance(guidance, (int, float)) and not isinstance(guidance, bool):
        return Guidance(Strength(float(guidance)))
    if isinstance(guidance, Strength):
        return Guidance(guidance)
    raise ValueError(
        f"`guidance` must be a guidance scale, such as 2.0, or a diffusion_lab.Guidance, got {guidance!r}."
    )


def as_sampler(
    sampler: SamplerChoice | None, num_steps: int | None, default: Sampler, process: GaussianProcess
) -> Sampler:
    """Return the sampler.

    sampler: see `SamplerChoice`; None is `default`.  num_steps: number of its steps; None keeps its own number.
    process: process whose reverse is sampled.
    """
    if isinstance(sampler, str):
        sampler = _sampler_class(sampler)
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        return sampler(process, **({} if num_steps is None else {"num_steps": num_steps}))
    chosen = default if sampler is None else sampler
    require_instance(chosen, Sampler, "sampler")
    assert isinstance(chosen, Sampler)
    return chosen if num_steps is None else replace(chosen, num_steps=num_steps)  # type: ignore[type-var]


def _sampler_class(name: str) -> type[Sampler]:
    classes = [getattr(samplers, name) for name in samplers.__all__]
    concrete = {kind.__name__: kind for kind in classes if isinstance(kind, type) and issubclass(kind, Sampler)}
    concrete = {key: kind for key, kind in concrete.items() if not getattr(kind, "__abstractmethods__", None)}
    found = [kind for key, kind in concrete.items() if key.casefold() == name.replace("_", "").casefold()]
    if not found:
        raise ValueError(f"`sampler` must be a sampler, its class or its name ({', '.join(concrete)}), got {name}.")
    return found[0]
