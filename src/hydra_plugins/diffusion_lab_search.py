"""A search for the settings with the smallest result: hydra/sweeper=optuna.

Hydra finds sweepers in this package alone. Optuna is imported when a search begins.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError

CUT_OFF = "cut_off"


class Search(Sweeper):
    """Rounds of `num_at_once` runs, each drawn by Optuna from what all runs before it came to.

    The study is in a file of the sweep's folder. After a kill the same command does the runs that were cut off, then
    those that are missing. What is drawn for a round is a function of the seed and of the runs before it.
    """

    def __init__(self, sampler: Any, seed: int, num_trials: int, num_at_once: int, params: Any) -> None:
        self.sampler, self.seed, self.params = sampler, seed, params
        self.num_trials, self.num_at_once = num_trials, num_at_once

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        for name in ("num_trials", "num_at_once"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise UserError(f"hydra.sweeper.{name} must be a whole number of at least 1, got {value}.")
        try:
            import optuna
        except ImportError as error:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install -e '.[search]'.") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = Path(str(config.hydra.sweep.dir))
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        words = [f"{key}={value}" for key, value in (self.params or {}).items()] + arguments
        parsed = OverridesParser.create().parse_overrides(words)
        fixed = [word.input_line or "" for word in parsed if not word.is_sweep_override()]
        space = {}
        for word in parsed:
            if word.is_sweep_override():
                try:
                    space[_name(word)] = _distribution(word)
                except ValueError as error:
                    raise UserError(f"{_name(word)} cannot be searched in {word.value()}: {error}") from error
        if not space:
            raise UserError("hydra/sweeper=optuna must be told what to search (optimizer.lr=interval(1e-4,1e-2)).")
        study = self._study()
        while (done := _num_done(study)) < self.num_trials:
            study.sampler = instantiate(self.sampler, seed=self.seed + done)
            self._round(study, space, fixed, min(self.num_at_once, self.num_trials - done), done)
        self._write_best(study)

    def _study(self) -> Any:
        import optuna
        from optuna.trial import TrialState

        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name="search", storage=f"sqlite:///{self.folder / 'search.db'}", load_if_exists=True
        )
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={CUT_OFF: trial.number})
        return study

    def _round(self, study: Any, space: dict[str, Any], fixed: Sequence[str], count: int, done: int) -> None:
        from optuna.trial import TrialState

        try:
            trials = [study.ask(space) for _ in range(count)]
        except ValueError as error:
            raise UserError(
                f"hydra/sweeper=optuna must search what it searched before in {self.folder}, or under another "
                f"sweep.name: {error}"
            ) from error
        drawn = [[*fixed, *(f"{name}={value}" for name, value in trial.params.items())] for trial in trials]
        different = {tuple(words): words for words in drawn}  # few choices are soon drawn twice
        returned = dict(zip(different, self.launcher.launch(list(different.values()), done), strict=True))
        for trial, words in zip(trials, drawn, strict=True):
            job = returned[tuple(words)]
            # A run that came to no number is a point that is worth nothing, and no end of the search.
            if job.status is JobStatus.COMPLETED and job.return_value is not None:
                study.tell(trial, float(job.return_value))
            else:
                study.tell(trial, state=TrialState.FAIL)

    def _write_best(self, study: Any) -> None:
        over = [trial for trial in study.trials if trial.value is not None]
        if not over:
            raise UserError(f"none of the {_num_done(study)} runs of the search came to a number.")
        best = min(over, key=lambda trial: trial.value)
        OmegaConf.save(OmegaConf.create({"value": best.value, "params": best.params}), self.folder / "best.yaml")
        words = " ".join(f"{name}={value}" for name, value in best.params.items())
        print(f"the best of {_num_done(study)} runs: {best.value:.6g} with {words}", flush=True)


def _num_done(study: Any) -> int:
    """How many runs have come to an end; one that was cut off counts when it is done again."""
    over = sum(trial.state.is_finished() for trial in study.trials)
    return int(over) - sum(CUT_OFF in trial.user_attrs for trial in study.trials)


def _name(word: Override) -> str:
    return str(word.get_key_element())


def _distribution(word: Override) -> Any:
    """What Optuna draws from: choices, a range of numbers or an interval, in powers with tag(log,...)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = word.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        in_powers = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=in_powers)
        return FloatDistribution(value.start, value.end, log=in_powers)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = [float(number) for number in value.range()]
        if all(number.is_integer() for number in numbers):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(value.step))
        return FloatDistribution(numbers[0], numbers[-1], step=float(value.step))
    choices: list[Any] = list(word.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)
