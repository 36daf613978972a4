"""A search by Optuna, with a launcher that answers at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from diffusion_lab.errors import UserError
from hydra_plugins.diffusion_lab_search import Search, _distribution

optuna = pytest.importorskip("optuna")


class Launcher:
    """Comes to (lr - 0.01)^2, or to nothing."""

    def __init__(self, result: Callable[[float], float | BaseException | None], calls: int = 1000) -> None:
        self.result, self.calls, self.asked = result, calls, list[list[str]]()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        if not self.calls:
            raise KeyboardInterrupt  # as a kill in the middle of a round
        self.calls -= 1
        answers = []
        for words in job_overrides:
            self.asked.append(list(words))
            answer = JobReturn(overrides=list(words), status=JobStatus.COMPLETED)
            answer.return_value = self.result(float(words[-1].removeprefix("lr=")))
            if isinstance(answer.return_value, BaseException):
                answer.status = JobStatus.FAILED
            answers.append(answer)
        return answers


def search(folder: Path, launcher: Launcher, num_trials: int = 6, **settings: Any) -> list[list[str]]:
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4})
    sweeper = Search(sampler, seed=3, num_trials=num_trials, num_at_once=2, params=None, **settings)
    sweeper.folder, sweeper.launcher = folder, launcher  # type: ignore[assignment]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweeper.sweep(["data=mnist", "lr=tag(log,interval(1e-4,1.0))"])
    return launcher.asked


def square(lr: float) -> float:
    return (lr - 0.01) ** 2


def test_the_best_of_all_runs_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = search(tmp_path, Launcher(square))
    assert len(asked) == 6
    assert all(words[0] == "data=mnist" and 1e-4 <= float(words[1].removeprefix("lr=")) <= 1 for words in asked)
    best = OmegaConf.load(tmp_path / "best.yaml")
    assert best.value == min(square(float(words[1].removeprefix("lr="))) for words in asked)
    assert "the best of 6 runs" in capsys.readouterr().out


def test_a_search_that_was_killed_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", Launcher(square))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", Launcher(square, calls=1))  # two are done, two were drawn
    rest = search(tmp_path / "cut", Launcher(square))
    assert rest == whole[2:]
    assert search(tmp_path / "cut", Launcher(square)) == []  # all are there
    assert len(search(tmp_path / "cut", Launcher(square), num_trials=8)) == 2


def test_runs_that_come_to_nothing_do_not_end_the_search(tmp_path: Path) -> None:
    results = iter([None, RuntimeError("no"), 3.0, None, 2.0, RuntimeError("no")])
    search(tmp_path, Launcher(lambda lr: next(results)))
    assert OmegaConf.load(tmp_path / "best.yaml").value == 2.0
    with pytest.raises(UserError, match="none of the 6 runs of the search came to a number"):
        search(tmp_path / "none", Launcher(lambda lr: None))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=int(interval(1,8))", "IntDistribution(high=8, log=False, low=1, step=1)"),
        ("a=interval(0.5,8)", "FloatDistribution(high=8.0, log=False, low=0.5, step=None)"),
        ("a=tag(log,interval(1e-4,1.0))", "FloatDistribution(high=1.0, log=True, low=0.0001, step=None)"),
        ("a=range(2,9,3)", "IntDistribution(high=8, log=False, low=2, step=3)"),
        ("a=range(0.5,2,0.5)", "FloatDistribution(high=1.5, log=False, low=0.5, step=0.5)"),
        ("a=linear,cosine", "CategoricalDistribution(choices=('linear', 'cosine'))"),
        ("a=1,2.5", "CategoricalDistribution(choices=(1, 2.5))"),
    ],
)
def test_words_of_the_command_line_are_what_optuna_draws_from(word: str, expected: str) -> None:
    assert repr(_distribution(OverridesParser.create().parse_overrides([word])[0])) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=interval(1e-2,1e-4)"], "lr cannot be searched in .*low"),
        (["lr=tag(log,interval(0,1))"], "lr cannot be searched in .*low > 0"),
        (["schedule=linear,jsd"], "must search what it searched before in .*, or under another sweep.name"),
    ],
)
def test_a_search_in_what_cannot_be_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler"})
    sweeper = Search(sampler, seed=0, num_trials=4, num_at_once=1, params=None)
    sweeper.folder, sweeper.launcher = tmp_path, Launcher(lambda lr: 1.0)  # type: ignore[assignment]
    study = sweeper._study()
    study.tell(study.ask({"schedule": optuna.distributions.CategoricalDistribution(["linear", "cosine"])}), 1.0)
    with pytest.raises(UserError, match=message):
        sweeper.sweep(words)


def test_a_search_of_nothing_is_refused(tmp_path: Path) -> None:
    sweeper = Search(None, seed=0, num_trials=1, num_at_once=1, params=None)
    with pytest.raises(UserError, match="must be told what to search"):
        sweeper.sweep(["data=mnist"])
