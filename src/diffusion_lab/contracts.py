"""The interfaces that users implement: messages that name what a class lacks, what it must return, and an example."""

import dataclasses
import inspect
from abc import ABC
from typing import Any, Self


class Interface(ABC):  # noqa: B024 (the derived classes have abstract methods)
    """Base of the abstract classes that users derive.

    A class without a required method cannot be built: TypeError names the method, its result and an example.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls.__abstractmethods__:
            base = next(kind for kind in cls.__mro__ if _is_own(kind))
            required = f"{_required(cls)} to be a {_public_name(base)}"
            raise TypeError(f"{cls.__name__} must define {required}{_example(base)}.")
        return super().__new__(cls)


class DataclassInterface(Interface):
    """Base of the abstract classes whose derived classes must be dataclasses.

    The fields of an object are its settings: fingerprints contain them, `dataclasses.replace` changes them, and objects
    with equal fields are equal. TypeError for any other class contains an example.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().__new__(cls)
        require_dataclass(cls)
        return instance


def require_dataclass(kind: type) -> None:
    """Raise TypeError unless the arguments of the constructor of a class are the fields of a frozen dataclass."""
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    bases = [base for base in kind.__mro__ if DataclassInterface in base.__bases__]
    purpose = "".join(f" to be a {_public_name(base)}" for base in bases)
    if "__dataclass_fields__" not in vars(owner):
        raise TypeError(
            f"{kind.__name__} must be a dataclass{purpose}; write "
            f"`@dataclass(frozen=True)` above `class {kind.__name__}`, and in the class, instead of `__init__`, a line "
            "such as `scale: float = 1.0` for each setting."
        )
    if not vars(owner)["__dataclass_params__"].frozen:
        raise TypeError(
            f"{owner.__name__} must be a frozen dataclass{purpose} (because values that are computed from its fields "
            f"are cached); write `@dataclass(frozen=True)` above `class {owner.__name__}`."
        )


def added(default: Any) -> Any:
    """Return a dataclass field that a later version added, with the behavior of all earlier versions as its default.

    Fingerprints contain the field only if it has another value. Values of earlier versions, whose fingerprints do not
    have the field, can therefore be compared with values that were measured with its default.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def is_described(field: "dataclasses.Field[Any]", value: Any) -> bool:
    """Return whether fingerprints contain a field with this value, see `added`."""
    return not (field.metadata.get("added") and value == field.default)


def conventions(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and of the dataclasses in it, that later versions added: name -> value.

    Fields with their default are left out, see `added`. A value of another class has no such fields.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        is_added = field.metadata.get("added") and is_described(field, each)
        found |= {field.name: each} if is_added else conventions(each)
    return found


def require_instance(value: Any, base: type, name: str) -> None:
    """Raise ValueError unless `value` is an instance of `base`.  name: name of the argument or setting."""
    if isinstance(value, base):
        return
    if isinstance(value, type) and issubclass(value, base):
        remedy = f"; build it with {_call(value)}"
        raise ValueError(f"`{name}` must be a {_public_name(base)}, got {described(value)}{remedy}.")
    required = f" that defines {_required(base)}" if getattr(base, "__abstractmethods__", None) else ""
    raise ValueError(f"`{name}` must be a {_public_name(base)}{required}, got {described(value)}{_example(base)}.")


def described(value: Any) -> str:
    """Return a plain value, the name of a class, or the class of any other object, for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__} instead of an object"
    is_plain = isinstance(value, str | int | float | None)
    return repr(value) if is_plain else f"an object of the class {type(value).__name__}"


def _required(kind: type) -> str:
    """Return the signatures of the abstract methods of a class, each with the first sentence of its docstring.

    Only the names are returned if there are more than three methods.
    """
    names = sorted(kind.__abstractmethods__)  # type: ignore[attr-defined]
    return " and ".join(_signature(kind, name) for name in names) if len(names) < 4 else ", ".join(names)


def _signature(kind: type, name: str) -> str:
    member = inspect.getattr_static(kind, name)
    if isinstance(member, property):
        return f"the property {name}"
    parameters = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
    sentence = (inspect.getdoc(member) or "").partition("\n")[0].partition(".  ")[0].rstrip(".")
    returned = f" ({sentence[0].lower()}{sentence[1:]})" if sentence else ""
    return f"{name}({', '.join(parameters)}){returned}"


def _example(base: type) -> str:
    """Return a hint with the classes of this package that derive from `base`: other bases, and one concrete class."""
    if not inspect.isabstract(base):
        return f"; build it with {_call(base)}" if _is_own(base) else ""
    kinds: list[type] = [base]
    for kind in kinds:  # the list grows by the classes that derive from its members
        derived: list[type] = type.__subclasses__(kind)
        kinds += [other for other in derived if _is_own(other) and other not in kinds]
    public = [kind for kind in kinds[1:] if not kind.__name__.startswith("_")]
    concrete = [_public_name(kind) for kind in public if not inspect.isabstract(kind)]
    bases = [_public_name(kind) for kind in public if inspect.isabstract(kind)]
    parts = [*([f"a base with less to define is {' or '.join(bases)}"] if bases else [])]
    return "".join(f"; {part}" for part in [*parts, *(f"{name} is an example" for name in concrete[:1])])


def _call(kind: type) -> str:
    """Return a call of a class with the names of the arguments that it requires."""
    parameters = inspect.signature(kind).parameters.values()
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [parameter.name for parameter in required if parameter.kind not in variable]
    return f"{kind.__name__}({', '.join(names)})"


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _public_name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
