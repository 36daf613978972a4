"""The line about the cost of a run, and what to set instead if a run on a CPU would take hours."""

import logging
import re
from collections.abc import Iterator, Sequence

from diffusion_lab.runs.cost.operations import measure_rates
from diffusion_lab.runs.cost.training import Cost, estimate, measuring_seconds
from diffusion_lab.runs.resume import StartingPoint
from diffusion_lab.runs.setup.training import Run
from diffusion_lab.training.classifier_module import ClassifierModule

logger = logging.getLogger(__name__)

MANY_SECONDS = 3600
"""Duration of a run on a CPU above which the line names settings for a shorter run."""

TRIAL_STEPS = 20
"""Number of steps up to which a run is a trial, whose cost is not estimated: its third step shows the duration."""

QUICK_PARAMETERS = 1_600_000
"""Upper bound of the number of parameters of unet_quick and half_unet_quick for images of up to 256 x 256 pixels."""


def print_cost(run: Run, start: StartingPoint, overrides: Sequence[str]) -> None:
    """Print the estimated cost of a run on rank 0, unless the operations of its network cannot be counted.

    overrides: overrides of the command line.
    """
    trainer = run.trainer
    num_steps = trainer.max_steps - start.step
    if not trainer.is_global_zero or trainer.fast_dev_run or 0 < num_steps <= TRIAL_STEPS:
        return
    try:
        rates = measure_rates(trainer.strategy.root_device, str(trainer.precision))
        cost = estimate(run.module, run.datamodule, trainer, rates)
        measuring = measuring_seconds(cost, trainer, run.module, start.step)
    except Exception as error:  # networks and full devices raise errors of any type, which must not end a run
        logger.debug("the cost of the run could not be estimated: %s", error)
        return
    line = f"cost: {describe(cost, num_steps, measuring)}"
    if trainer.strategy.root_device.type == "cpu" and cost.seconds_per_step * num_steps + measuring > MANY_SECONDS:
        shorter = ", or ".join(_shorter(run, cost, start, overrides))
        line += f"; shorter on a CPU: {shorter}" if shorter else ""
    print(line, flush=True)


def describe(cost: Cost, num_steps: int, measuring: float) -> str:
    """Return the cost of num_steps steps in one line.  measuring: seconds for sample images and metrics."""
    number = f"{cost.num_parameters / 1e6:,.1f} million" if cost.num_parameters >= 1e6 else f"{cost.num_parameters:,}"
    text, step = f"{number} parameters, about {cost.memory / 1e9:,.1f} GB of memory", f"{cost.seconds_per_step:.2g} s"
    if num_steps < 1:
        return f"{text}, about {step} per step"
    text += f", about {duration(cost.seconds_per_step * num_steps + measuring)} ({step} per step"
    return text + (f"; {duration(measuring)} for sample images and metrics)" if measuring >= 1 else ")")


def steps_in_an_hour(cost: Cost) -> int:
    """Return the number of steps that take less than an hour, rounded down to one digit."""
    steps = int(3600 / cost.seconds_per_step)
    unit = int(10 ** (len(str(steps)) - 1))
    return max(1, steps // unit * unit)


def _shorter(run: Run, cost: Cost, start: StartingPoint, overrides: Sequence[str]) -> Iterator[str]:
    """Yield overrides that make a run shorter."""
    # The settings of an experiment or of model.KEY=... would also apply to the other network, which they may not fit.
    fixed = any(re.match(r"\W*(experiment\b|model\.)", text) for text in overrides)
    is_new = start.checkpoint is None and not start.continues
    can_be_smaller = is_new and not fixed and run.module.network.resolution % 4 == 0
    is_classifier = isinstance(run.module, ClassifierModule)
    if can_be_smaller and not is_classifier:
        yield f"the recipe of the quick start, {_quick_start(run, overrides)}"
    if (steps := start.step + steps_in_an_hour(cost)) < run.trainer.max_steps:
        yield f"trainer.max_steps={steps} (about an hour without sample images and metrics)"
    is_large = cost.num_parameters > QUICK_PARAMETERS and "model=half_unet_quick" not in overrides
    if can_be_smaller and is_classifier and is_large:
        yield "a smaller network, model=half_unet_quick"


def _quick_start(run: Run, overrides: Sequence[str]) -> str:
    """Return the overrides for the recipe of the quick start: network, schedule, learning rate, number of steps."""
    has_classes = len(run.datamodule.train_images.class_names) > 1 or run.module.num_classes > 1
    given = [text for text in overrides if re.match(r"model=(?!unet_quick$)|trainer\.max_(steps|epochs)=", text)]
    text = "experiment=quickstart" + ("" if has_classes else " conditioning=none")
    return f"{text} without {' '.join(given)}" if given else text


def duration(seconds: float) -> str:
    """Return a duration in its largest unit: 5.3 hours, 12 minutes, 40 seconds."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 2):.0f} seconds"
