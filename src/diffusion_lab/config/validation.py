"""Validation of a config against the signatures of its targets, before anything is built."""

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from diffusion_lab.config.library_classes import import_target, settings_of
from diffusion_lab.contracts import DataclassInterface, require_dataclass
from diffusion_lab.errors import UserError

BUILT = (
    *("model", "schedule", "prediction", "objective", "times", "weighting", "variance", "sampler", "clipping"),
    *("time_grid", "ema", "guard", "optimizer", "lr_schedule"),
)
"""Config groups each of whose choices describes one object."""

META = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def raise_problems(problems: list[str]) -> None:
    """Raise UserError with all problems in one message, if there are any.

    A resolved config repeats some nodes, such as schedule in process.schedule. Such a problem is named once, and so is
    a class that cannot be imported.
    """
    named: list[str] = []
    for problem in sorted(dict.fromkeys(problems), key=lambda problem: problem.partition(" ")[0].count(".")):
        is_repeated = any(problem.endswith(f".{shorter}") for shorter in named)
        if not is_repeated and not any(_same_target(problem, other) for other in named):
            named.append(problem)
    if named:
        raise UserError("; ".join(problem for problem in dict.fromkeys(problems) if problem in named) + ".")


def _same_target(problem: str, other: str) -> bool:
    return "._target_ must" in problem and problem.partition("._target_ ")[2] == other.partition("._target_ ")[2]


def argument_problems(node: Any, path: str) -> Iterator[str]:
    """Yield a message for each unknown, missing or wrongly typed argument of every `_target_` in a resolved node."""
    if isinstance(node, (list, ListConfig)):
        for index, child in enumerate(node):
            yield from argument_problems(child, f"{path}.{index}")
        return
    if not isinstance(node, (dict, DictConfig)):
        return
    if "_target_" in node:
        yield from _call_problems(node, path)
    for key, child in node.items():
        name = str(key)
        yield from argument_problems(child, f"{path}.{name}" if path else name)


def data_problems(data: Any) -> Iterator[str]:
    """Yield the argument problems of data.store.  Settings are named as they are typed: data.NAME if there is one."""
    for problem in argument_problems(data.store, "data.store"):
        path, _, rest = problem.partition(" ")
        name = path.rpartition(".")[2]
        yield f"data.{name} {rest}" if name in data and name not in META else problem


def _call_problems(node: Any, path: str) -> Iterator[str]:
    name = str(node["_target_"])
    try:
        target = import_target(name)
    except (ImportError, ValueError) as error:
        yield f"{path}._target_ must be {_import_problem(name, error)}"
        return
    if isinstance(target, type) and issubclass(target, DataclassInterface) and not target.__abstractmethods__:
        try:
            require_dataclass(target)
        except TypeError as error:  # its fields are its settings, so that no setting can be checked
            yield f"{path}: {str(error).rstrip('.')}"
            return
    owner = getattr(target, "__name__", str(target))
    parameters = inspect.signature(target).parameters
    names = settings_of(target)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in node:
            if key not in META and key not in names:
                hint, accepted = suggestion(str(key), names), ", ".join(names) or "none"
                yield f"{path}.{key} is not a setting of {owner}{hint}; accepted settings are {accepted}"
    if not node.get("_partial_"):
        for name in names:
            if name in parameters and parameters[name].default is inspect.Parameter.empty and name not in node:
                yield f"{path}.{name} is missing"
    hints = _hints(target)
    for name in names:
        if name in node and name in hints and not _fits(node[name], hints[name]):
            given = "null" if node[name] is None else node[name]
            yield f"{path}.{name} must be {_readable(hints[name])}, got {given}"


def missing_targets(config: DictConfig) -> Iterator[str]:
    """Yield a message for each node of BUILT that names no class."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for key in BUILT:
        node = config.get(key)
        if isinstance(node, DictConfig) and "_target_" not in node:
            file = f" in {key}/{choices[key]}.yaml" if choices.get(key) else ""
            given = f"only {', '.join(map(str, node))}" if node else "no settings"
            yield f"{key}._target_ must be the import path of a class{file}, such as my_project.MyClass, got {given}"


def _import_problem(name: str, error: Exception) -> str:
    """Return what `_target_` must be and why the import of `name` failed, with a hint."""
    missing = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, ModuleNotFoundError) else None
    library = name.partition(".")[0]
    if missing == library:
        is_here = any(Path(f"{library}{end}").exists() for end in (".py", "/__init__.py"))
        hint = "; PYTHONPATH=. finds it" if is_here else suggestion(library, [m.name for m in pkgutil.iter_modules()])
        return f"in an installed library or in a folder on PYTHONPATH, got {name} ({library} is not installed){hint}"
    reason, hint = " ".join(str(error).split()), ""
    if missing and f"{name}.".startswith(f"{missing}."):
        parent, _, last = missing.rpartition(".")
        module = importlib.import_module(parent)
        inner = [m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ()))]
        names = sorted({*dir(module), *inner}, key=str.swapcase)  # the hint is UNet rather than unet
        reason, hint = f"{parent} has no {last}", suggestion(last, names)
    return f"the import path of a class or function, got {name} ({reason}){hint}"


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except NameError:  # a type is imported for type checkers only; its hint stays a string and is not checked
        hints: dict[str, Any] = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in hints.items() if not isinstance(hint, str)}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain config value can match a type hint; values of other types are left to the constructor."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, (dict, DictConfig)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if _is_tensor(hint):
        return False
    if hint in (int, float, bool, str):
        return isinstance(value, (int, float) if hint is float else hint) and (
            hint is bool or not isinstance(value, bool)
        )
    if hint is type(None):
        return value is None
    if origin in (Sequence, list, tuple) and not isinstance(value, (list, tuple, ListConfig)):
        return False
    if isinstance(value, (list, ListConfig)):
        items = [argument for argument in arguments if argument is not Ellipsis]
        return len(items) != 1 or all(_fits(item, items[0]) for item in value)
    return True


def _readable(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        plain = [argument for argument in arguments if not _is_tensor(argument)]
        return " or ".join(dict.fromkeys(name for argument in plain for name in _readable(argument).split(" or ")))
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    if hint in names:
        return names[hint]
    return "a list" if origin is not None else getattr(hint, "__name__", str(hint))


def _is_tensor(hint: Any) -> bool:
    """Return whether a type hint is torch.Tensor, which a config cannot contain."""
    return getattr(hint, "__module__", "") == "torch" and getattr(hint, "__name__", "") == "Tensor"


def suggestion(name: str, choices: list[str]) -> str:
    """Return a hint with the choice closest to `name`, for the end of an error message; "" if no choice is close."""
    by_lower_case = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"; perhaps you mean {by_lower_case[close[0]]}" if close else ""
