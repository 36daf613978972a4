"""Overrides of train that several formats need, to describe how a foreign network was trained and is sampled."""


def data_overrides(choice: str | None, *, resolution: int, channels: int, num_classes: int) -> list[str]:
    """Return the overrides of the data set.  choice: choice of the group `data`; None if the set is not known.

    An unknown set has no path, so that sampling works, and evaluations require data.path.
    """
    sizes = {"resolution": resolution, "channels": channels, "num_classes": max(1, num_classes)}
    unknown = ["data.path=null", *(["data.label_column=label"] if num_classes else [])]
    overrides = [f"data={choice or 'folder'}", *([] if choice else unknown)]
    return [*overrides, *(f"data.{name}={value}" for name, value in sizes.items())]


def label_overrides(num_classes: int, dropout: float) -> list[str]:
    """Return the overrides of the classes that a network is conditioned on."""
    if not num_classes:
        return ["conditioning=none"]
    return ["conditioning=label", f"conditioning.num_classes={num_classes}", f"conditioning.dropout={dropout}"]


def variance_overrides(*, learned: bool, fixed: str = "fixed_large") -> list[str]:
    """Return the overrides of the reverse variance, and of the objective that trains it."""
    return ["objective=hybrid", "variance=learned_range"] if learned else ["objective=simple", f"variance={fixed}"]


def without_given(overrides: list[str], given: frozenset[str]) -> tuple[str, ...]:
    """Return the overrides that the user has not replaced.

    given: keys of the overrides that were typed. A choice that was typed also replaces the settings of another choice.
    """
    keys = {override: override.partition("=")[0] for override in overrides}
    return tuple(o for o, key in keys.items() if key not in given and key.partition(".")[0] not in given)
