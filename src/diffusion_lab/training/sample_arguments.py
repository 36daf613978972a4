"""The forms in which `DiffusionModule.sample` takes its arguments -> the objects that it works with."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from diffusion_lab import samplers
from diffusion_lab.contracts import require_instance
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import Sampler

SamplerChoice = Sampler | type[Sampler] | str
"""A sampler, or the class or name of a sampler, such as DDIM or "ddim".

A sampler that is given by class or name has the time grid and clipping of the module's sampler, as in the commands, and
the default values of all other settings.
"""


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


def as_guidance(guidance: Guidance | Strength | float | None, guidance_scale: float | None = None) -> Guidance:
    """Return the guidance; a number is the scale of classifier-free guidance.

    guidance_scale: another name of such a number.
    """
    if guidance_scale is not None:
        if guidance is not None:
            raise ValueError(f"`guidance_scale` must be None if `guidance` is given, got {guidance_scale}.")
        guidance = guidance_scale
    if guidance is None or isinstance(guidance, Guidance):
        return guidance or Guidance()
    if isinstance(guidance, (int, float)) and not isinstance(guidance, bool):
        return Guidance(Strength(float(guidance)))
    if isinstance(guidance, Strength):
        return Guidance(guidance)
    raise ValueError(
        f"`guidance` must be a guidance scale, such as 2.0, or a diffusion_lab.Guidance, got {guidance!r}."
    )


def as_sampler(sampler: SamplerChoice | None, default: Sampler, process: GaussianProcess, **changes: Any) -> Sampler:
    """Return the sampler.

    sampler: see `SamplerChoice`; None is `default`.  process: process whose reverse is sampled.
    changes: settings that replace those of the sampler, by name; None keeps a setting.
    Raises ValueError for a sampler of another process, see `_require_process`.
    """
    if isinstance(sampler, str):
        sampler = _sampler_class(sampler)
    changes = {name: value for name, value in changes.items() if value is not None}
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        settings: dict[str, Any] = {"time_grid": default.time_grid, "clipping": default.clipping, **changes}
        return sampler(process, **settings)
    chosen = default if sampler is None else sampler
    require_instance(chosen, Sampler, "sampler")
    assert isinstance(chosen, Sampler)
    _require_process(chosen, process)
    return replace(chosen, **changes) if changes else chosen  # type: ignore[type-var]


def _require_process(sampler: Sampler, process: GaussianProcess) -> None:
    """Raise ValueError unless the process of a sampler adds the same noise as `process` at the times of the sampler."""
    if process.adds_noise_of(sampler.process, sampler.times):
        return
    given, own = sampler.process.schedule, process.schedule
    raise ValueError(f"`sampler` must have the process of the module ({own}), got a sampler with {given}.")


def _sampler_class(name: str) -> type[Sampler]:
    classes = [getattr(samplers, name) for name in samplers.__all__]
    concrete = {kind.__name__: kind for kind in classes if isinstance(kind, type) and issubclass(kind, Sampler)}
    concrete = {key: kind for key, kind in concrete.items() if not getattr(kind, "__abstractmethods__", None)}
    found = [kind for key, kind in concrete.items() if key.casefold() == name.replace("_", "").casefold()]
    if not found:
        close = get_close_matches(name.casefold(), [key.casefold() for key in concrete], n=1, cutoff=0.6)
        hint = "".join(f"; perhaps you mean {key}" for key in concrete if key.casefold() in close)
        raise ValueError(
            f"`sampler` must be a sampler, its class or its name ({', '.join(concrete)}), got {name}{hint}."
        )
    return found[0]
