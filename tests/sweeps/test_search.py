"""A search by Optuna with a launcher that computes results instead of training."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.sweeps.search_file import require_plain_search
from hydra_plugins.diffusion_lab_search import Search, _distribution

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module", autouse=True)
def _without_sync() -> Iterator[None]:
    """Let SQLite not wait for the disk, which takes most of the time of these tests."""
    from sqlalchemy import Engine, event

    def disable_sync(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", disable_sync)
    yield
    event.remove(Engine, "connect", disable_sync)


class Launcher:
    """Returns `result` of the learning rate of each run; is interrupted after `calls` launches."""

    def __init__(self, result: Callable[[float], float | BaseException | None], calls: int = 1000) -> None:
        self.result, self.calls, self.launched = result, calls, list[list[str]]()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        if not self.calls:
            raise KeyboardInterrupt  # an interruption in the middle of a round
        self.calls -= 1
        jobs = []
        for overrides in job_overrides:
            self.launched.append(list(overrides))
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = self.result(float(overrides[-1].removeprefix("lr=")))
            if isinstance(job.return_value, BaseException):
                job.status = JobStatus.FAILED
            jobs.append(job)
        return jobs


def search(folder: Path, launcher: Launcher, num_trials: int = 6, **settings: Any) -> list[list[str]]:
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4})
    sweeper = Search(sampler, seed=3, num_trials=num_trials, num_at_once=2, params=None, **settings)
    sweeper.folder, sweeper.launcher = folder, launcher  # type: ignore[assignment]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweeper.sweep(["data=mnist", "lr=tag(log,interval(1e-4,1.0))"])
    return launcher.launched


def square(lr: float) -> float:
    return (lr - 0.01) ** 2


def test_the_best_run_is_saved_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched = search(tmp_path, Launcher(square))
    assert len(launched) == 6
    rates = [float(lr.removeprefix("lr=")) for _, lr in launched]
    assert all(data == "data=mnist" for data, _ in launched)
    assert all(1e-4 <= lr <= 1 for lr in rates)
    best = OmegaConf.load(tmp_path / "best.yaml")
    assert best.value == min(map(square, rates))
    assert "the best of 6 runs" in capsys.readouterr().out


def test_an_interrupted_search_samples_the_same_settings_as_an_uninterrupted_one(tmp_path: Path) -> None:
    complete = search(tmp_path / "complete", Launcher(square))
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        search(folder, Launcher(square, calls=1))  # two runs are done, two more were sampled
    assert search(folder, Launcher(square)) == complete[2:]
    assert search(folder, Launcher(square)) == []  # all runs are done
    assert len(search(folder, Launcher(square), num_trials=8)) == 2


def test_runs_without_a_result_do_not_end_the_search(tmp_path: Path) -> None:
    results = iter([None, RuntimeError("no"), 3.0, None, 2.0, RuntimeError("no")])
    search(tmp_path, Launcher(lambda lr: next(results)))
    assert OmegaConf.load(tmp_path / "best.yaml").value == 2.0
    with pytest.raises(UserError, match="none of the 6 runs of the search has a result"):
        search(tmp_path / "none", Launcher(lambda lr: None))


def test_the_same_command_runs_failed_runs_again(tmp_path: Path) -> None:
    expected = search(tmp_path / "expected", Launcher(square))
    failed = Launcher(lambda lr: RuntimeError("the disk is full"))
    with pytest.raises(UserError, match="none of the 6 runs of the search has a result; the same command runs them"):
        search(tmp_path / "all", failed)
    again = search(tmp_path / "all", Launcher(square))  # the cause is repaired
    assert again == failed.launched
    assert len(again) == len(expected) == 6
    assert OmegaConf.load(tmp_path / "all" / "best.yaml").value == min(square(float(lr[3:])) for _, lr in again)
    assert search(tmp_path / "all", Launcher(square)) == []


def test_only_failed_runs_are_repeated_and_each_once_per_command(tmp_path: Path) -> None:
    results = iter([0.5, None, 3.0, RuntimeError("no"), 2.0, 1.0])
    first = search(tmp_path, Launcher(lambda lr: next(results)))
    for _ in range(2):  # runs that fail again are repeated again
        assert search(tmp_path, Launcher(lambda lr: None)) == [first[1], first[3]]
    assert search(tmp_path, Launcher(lambda lr: 0.25), num_trials=8)[:2] == [first[1], first[3]]
    assert search(tmp_path, Launcher(square), num_trials=8) == []
    assert OmegaConf.load(tmp_path / "best.yaml").value == 0.25


@pytest.mark.full
def test_failed_runs_are_repeated_after_an_interruption_of_their_repetition(tmp_path: Path) -> None:
    failed = Launcher(lambda lr: None)
    with pytest.raises(UserError, match="none of the 6 runs"):
        search(tmp_path, failed)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Launcher(square, calls=1))
    assert sorted(search(tmp_path, Launcher(square))) == sorted(failed.launched[2:])


@pytest.mark.parametrize(
    ("override", "expected"),
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
def test_sweep_overrides_become_distributions_of_optuna(override: str, expected: str) -> None:
    assert repr(_distribution(OverridesParser.create().parse_overrides([override])[0])) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=interval(1e-2,1e-4)"], "lr must be a valid search space, got .*low"),
        (["lr=tag(log,interval(0,1))"], "lr must be a valid search space, got .*low > 0"),
        (["schedule=linear,jsd"], "must search the same settings as before in .*; choose another sweep.name"),
    ],
)
def test_an_invalid_search_space_is_rejected(overrides: list[str], message: str, tmp_path: Path) -> None:
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler"})
    sweeper = Search(sampler, seed=0, num_trials=4, num_at_once=1, params=None)
    sweeper.folder, sweeper.launcher = tmp_path, Launcher(lambda lr: 1.0)  # type: ignore[assignment]
    study = sweeper._study()
    study.tell(study.ask({"schedule": optuna.distributions.CategoricalDistribution(["linear", "cosine"])}), 1.0)
    with pytest.raises(UserError, match=message):
        sweeper.sweep(overrides)


def test_a_search_without_a_search_space_is_rejected(tmp_path: Path) -> None:
    sweeper = Search(None, seed=0, num_trials=1, num_at_once=1, params=None)
    with pytest.raises(UserError, match="needs a setting to search, got none"):
        sweeper.sweep(["data=mnist"])


def strange_search(folder: Path) -> None:
    """Write a search.db as another person could: a waiting run with a setting that runs code."""
    folder.mkdir()
    evil, choice = "{_target_: os.mkdir, path: x}", optuna.distributions.CategoricalDistribution
    study = optuna.create_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING, params={"+callbacks.x": evil},
            distributions={"+callbacks.x": choice([evil])},
        )
    )  # fmt: skip


def test_settings_that_only_a_strange_search_names_are_no_overrides(tmp_path: Path) -> None:
    strange_search(tmp_path / "search")
    launched = search(tmp_path / "search", Launcher(square), num_trials=3)
    assert len(launched) == 3
    assert all(data == "data=mnist" and lr.startswith("lr=") for data, lr in launched)
    assert "callbacks" not in (tmp_path / "search" / "best.yaml").read_text()


def test_a_strange_search_is_continued_only_with_samplers_that_load_no_pickles(tmp_path: Path) -> None:
    strange_search(tmp_path / "search")
    require_plain_search(tmp_path / "search", {"_target_": "optuna.samplers.TPESampler"})
    with pytest.raises(UserError, match=r"load no pickle from .*search\.db, .*, got optuna\.samplers\.CmaEsSampler"):
        require_plain_search(tmp_path / "search", {"_target_": "optuna.samplers.CmaEsSampler"})


@pytest.mark.parametrize("content", ["text", "view", "generated column", "other tables", "link", "FIFO"])
def test_a_strange_search_with_other_content_is_refused_in_one_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "search.db"
    sql = {
        "view": "CREATE VIEW studies AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT 1 FROM r) SELECT * FROM r",
        "generated column": "CREATE TABLE studies (study_id, x GENERATED ALWAYS AS (zeroblob(1000000000)))",
        "other tables": "CREATE TABLE studies (x)",
    }
    if content in sql:
        with closing(sqlite3.connect(file)) as database:
            database.execute(sql[content])
    elif content == "text":
        file.write_text("no database " * 100)
    elif content == "link":
        file.symlink_to(tmp_path / "other.db")
    else:
        os.mkfifo(file)
    with pytest.raises(UserError, match=r"search\.db (must be|cannot be read as).*; sweep\.name=NAME starts a search"):
        search(tmp_path, Launcher(square))
    assert not (tmp_path / "other.db").exists()
