"""The forms in which `DiffusionModule.sample` takes its arguments -> the objects that it works with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from typing import Any

from diffusion_lab import samplers
from diffusion_lab.contracts import described, require_instance
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import Clipping, Sampler, TimeGrid

SamplerChoice = Sampler | type[Sampler] | str
"""A sampler, or the class or name of a sampler, such as DDIM or "ddim".

A sampler that is given by class or name has the time grid and clipping of the module's sampler, as in the commands, and
the default values of all other settings.
"""


NAMES_IN_CONFIGS = {"langevin": "annealedlangevin", "none": "noclipping", "sections": "sectiontimes"}
"""Names of files in the configs -> class names, in lower case, where the file is not named after the class."""


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
        shape = list(getattr(given, "shape", []))
        found = f"a tensor {shape}; noise is given to a sampler, see Sampler.sample" if len(shape) > 1 else seeds
        raise ValueError(f"`seeds` must be a list of whole numbers of at least 0, or their number, got {found}.")
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
        sampler = _class_named(sampler, Sampler, "sampler", "a sampler, its class or its name")
    changes = {name: value for name, value in changes.items() if value is not None}
    if isinstance(changes.get("time_grid"), str):
        changes["time_grid"] = _part_named(changes["time_grid"], TimeGrid, "time_grid", "a time grid or its name")
    if isinstance(changes.get("clipping"), str):
        changes["clipping"] = _part_named(changes["clipping"], Clipping, "clipping", "a clipping or its name")
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        settings: dict[str, Any] = {"time_grid": default.time_grid, "clipping": default.clipping, **changes}
        return sampler(process, **settings)
    chosen = default if sampler is None else sampler
    require_instance(chosen, Sampler, "sampler")
    assert isinstance(chosen, Sampler)
    _require_process(chosen, process)
    return replace(chosen, **changes) if changes else chosen  # type: ignore[type-var]


def refuse_settings(settings: Mapping[str, Any], arguments: Iterable[str]) -> None:
    """Raise TypeError, which names the remedy, for keyword arguments that `DiffusionModule.sample` does not have.

    settings: these keyword arguments.  arguments: names of its arguments.
    """
    for name, value in settings.items():
        classes = [getattr(samplers, name) for name in samplers.__all__]
        owner = next((kind for kind in classes if name in getattr(kind, "__dataclass_fields__", ())), None)
        close = get_close_matches(name, list(arguments), n=1, cutoff=0.6)
        if owner is not None and issubclass(owner, Sampler):
            remedy = (
                f"; it is a setting of samplers: sampler={owner.__name__}(module.process, {name}={described(value)})"
            )
        else:
            remedy = f"; perhaps you mean {close[0]}" if close else ""
        raise TypeError(f"`{name}` is not an argument of sample, got {described(value)}{remedy}.")


def _require_process(sampler: Sampler, process: GaussianProcess) -> None:
    """Raise ValueError unless the process of a sampler adds the same noise as `process` at the times of the sampler."""
    if process.adds_noise_of(sampler.process, sampler.times):
        return
    given, own = sampler.process.schedule, process.schedule
    raise ValueError(f"`sampler` must have the process of the module ({own}), got a sampler with {given}.")


def _class_named(name: str, base: type, argument: str, accepted: str) -> Any:
    """Return the class of `samplers` that has a name.  base: its base class.

    name: name of the class, or of its file in the configs, such as "karras" for KarrasTimes.
    argument: name of the argument.  accepted: its forms.  Both are for the error message.
    """
    classes = [getattr(samplers, name) for name in samplers.__all__]
    concrete = {kind.__name__: kind for kind in classes if isinstance(kind, type) and issubclass(kind, base)}
    concrete = {key: kind for key, kind in concrete.items() if not getattr(kind, "__abstractmethods__", None)}
    wanted = name.replace("_", "").casefold()
    wanted = NAMES_IN_CONFIGS.get(wanted, wanted)
    for key, kind in concrete.items():
        if wanted in (key.casefold(), key.removesuffix("Times").removesuffix("Clipping").casefold()):
            return kind
    close = get_close_matches(name.casefold(), [key.casefold() for key in concrete], n=1, cutoff=0.6)
    hint = "".join(f"; perhaps you mean {key}" for key in concrete if key.casefold() in close)
    raise ValueError(f"`{argument}` must be {accepted} ({', '.join(concrete)}), got {name}{hint}.")


def _part_named(name: str, base: type, argument: str, accepted: str) -> Any:
    """Return the time grid or clipping of a name, see `_class_named`, with its default settings."""
    kind = _class_named(name, base, argument, accepted)
    required = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    if required:
        example = f"{kind.__name__}({', '.join(required)})"
        raise ValueError(f"`{argument}` must be {example}, whose settings have no default, got the name {name}.")
    return kind()
