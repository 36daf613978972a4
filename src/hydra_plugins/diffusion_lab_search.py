"""A sweeper that searches for the settings with the smallest result: hydra/sweeper=optuna.

Hydra searches only the package hydra_plugins for sweepers. Optuna is optional and is imported when a search begins.
"""

from collections.abc import Collection, Sequence
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
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.paths import install_command
from diffusion_lab.sweeps.search_file import SEARCH, reading_search, require_plain_search

REPEATED = "cut_off"
"""User attribute of a trial that repeats an interrupted or failed trial; its value is the number of that trial."""


class Search(Sweeper):
    """Rounds of `num_at_once` parallel runs, whose settings Optuna samples given the results of all earlier rounds.

    The study is stored in search.db in the sweep's folder. The same command first repeats the runs that were
    interrupted or have failed, each once, and then continues. The settings of a round depend only on `seed` and the
    earlier results.

    sampler: config of an Optuna sampler.  seed: seed of the sampler.
    params: search space in addition to the search space on the command line.
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
            raise UserError(f"hydra/sweeper=optuna needs Optuna: {install_command('search')}.") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = Path(str(config.hydra.sweep.dir))
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        given = [f"{key}={value}" for key, value in (self.params or {}).items()] + arguments
        parsed = OverridesParser.create().parse_overrides(given)
        fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
        space = {}
        for override in parsed:
            if override.is_sweep_override():
                try:
                    space[_name(override)] = _distribution(override)
                except ValueError as error:
                    raise UserError(
                        f"{_name(override)} must be a valid search space, got {override.value()}: {error}"
                    ) from error
        if not space:
            raise UserError(
                "hydra/sweeper=optuna needs a setting to search, got none; try 'optimizer.lr=interval(1e-4,1e-2)'."
            )
        study = self._study()
        while (done := _num_done(study)) < self.num_trials:
            study.sampler = instantiate(self.sampler, seed=self.seed + done)
            self._round(study, space, fixed, min(self.num_at_once, self.num_trials - done), done)
        self._write_best(study, space)

    def _study(self) -> Any:
        import optuna
        from optuna.trial import TrialState

        self.folder.mkdir(parents=True, exist_ok=True)
        require_plain_search(self.folder, self.sampler)
        with reading_search(self.folder):
            study = optuna.create_study(
                study_name="search", storage=f"sqlite:///{self.folder / SEARCH}", load_if_exists=True
            )
            study.get_trials()
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
        repeated = {trial.user_attrs[REPEATED] for trial in study.trials if REPEATED in trial.user_attrs}
        for trial in study.get_trials(states=[TrialState.FAIL]):
            if trial.number not in repeated:
                study.enqueue_trial(trial.params, user_attrs={REPEATED: trial.number})
        return study

    def _round(self, study: Any, space: dict[str, Any], fixed: Sequence[str], count: int, done: int) -> None:
        from optuna.trial import TrialState

        try:
            trials = [study.ask(space) for _ in range(count)]
        except ValueError as error:
            raise UserError(
                f"hydra/sweeper=optuna must search the same settings as before in {self.folder}; choose another "
                f"sweep.name for a different search: {error}"
            ) from error
        # A search.db of another person may contain trials with other settings, which could run code.
        sampled = [[*fixed, *(f"{name}={trial.params[name]}" for name in space)] for trial in trials]
        unique = {tuple(overrides): overrides for overrides in sampled}  # trials may have sampled the same settings
        returned = dict(zip(unique, self.launcher.launch(list(unique.values()), done), strict=True))
        for trial, overrides in zip(trials, sampled, strict=True):
            job = returned[tuple(overrides)]
            # A run without a result is a failed trial; the search continues.
            if job.status is JobStatus.COMPLETED and job.return_value is not None:
                study.tell(trial, float(job.return_value))
            else:
                study.tell(trial, state=TrialState.FAIL)

    def _write_best(self, study: Any, space: Collection[str]) -> None:
        with_result = [trial for trial in study.trials if trial.value is not None]
        if not with_result:
            raise UserError(
                f"none of the {_num_done(study)} runs of the search has a result; the same command runs them again."
            )
        best = min(with_result, key=lambda trial: trial.value)
        params = {name: value for name, value in best.params.items() if name in space}
        with atomic_file(self.folder / "best.yaml") as partial:
            OmegaConf.save(OmegaConf.create({"value": best.value, "params": params}), partial)
        overrides = " ".join(f"{name}={value}" for name, value in params.items())
        print(f"the best of {_num_done(study)} runs: {best.value:.6g} with {overrides}", flush=True)


def _num_done(study: Any) -> int:
    """Return the number of finished trials; a repeated trial counts when its repetition finishes."""
    num_finished = sum(trial.state.is_finished() for trial in study.trials)
    return int(num_finished) - sum(REPEATED in trial.user_attrs for trial in study.trials)


def _name(override: Override) -> str:
    return str(override.get_key_element())


def _distribution(override: Override) -> Any:
    """Return the Optuna distribution of a sweep override.

    The override is a list of choices, a range, or an interval; tag(log,...) makes an interval logarithmic.
    Raises ValueError for bounds that Optuna rejects.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        is_log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=is_log)
        return FloatDistribution(value.start, value.end, log=is_log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = [float(number) for number in value.range()]
        if all(number.is_integer() for number in numbers):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(value.step))
        return FloatDistribution(numbers[0], numbers[-1], step=float(value.step))
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)
