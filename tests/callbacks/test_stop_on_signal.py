"""Signals during training: where the run stops, what it saves, and what the resumed run repeats."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from callbacks.test_checkpoints import AfterBatch, step, train
from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import PeriodicAction
from diffusion_lab.callbacks.sample_images import SampleImages
from diffusion_lab.callbacks.stop_on_signal import StopOnSignal
from diffusion_lab.distributed import signals
from diffusion_lab.distributed.signals import StoppedBySignal, held, install, interruptible, raise_on_signal, restore
from support.small_runs import small_module

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
OTHERS = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers_of_a_terminal() -> Iterator[None]:
    """Also if the tests were started with nohup, or in the background by a script."""
    before = [signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)]
    yield
    signal.signal(signal.SIGHUP, before[0])
    signal.signal(signal.SIGINT, before[1])


def send(*numbers: int) -> Callable[[], None]:
    def function() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return function


@pytest.mark.parametrize("number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.full) for n in NUMBERS[1:])])
def test_a_signal_stops_the_run_after_the_current_step_and_saves_a_checkpoint(tmp_path: Path, number: int) -> None:
    module, handlers = small_module(), [signal.getsignal(n) for n in NUMBERS]
    in_the_fifth_step = AfterBatch(9, send(number))  # after one of its two batches
    with pytest.raises(StoppedBySignal, match="after step 5") as stop:
        train(module, tmp_path, 9, in_the_fifth_step, StopOnSignal(), accumulate_grad_batches=2)
    assert (stop.value.step, stop.value.number) == (5, number)
    assert step(tmp_path / "last.ckpt") == 5
    assert [signal.getsignal(n) for n in NUMBERS] == handlers


def test_a_second_ctrl_c_stops_the_run_immediately(tmp_path: Path) -> None:
    with pytest.raises(StoppedBySignal, match=r"^interrupted by SIGINT$"):
        train(small_module(), tmp_path, 9, AfterBatch(4, send(signal.SIGINT, signal.SIGINT)), StopOnSignal())
    assert step(tmp_path / "last.ckpt") == 4


def test_ctrl_c_while_a_checkpoint_is_written_waits_for_the_complete_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_files.write

    def write_during_ctrl_c(*arguments: Any) -> None:
        send(signal.SIGINT, signal.SIGINT)()
        write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write", write_during_ctrl_c)
    with pytest.raises(KeyboardInterrupt):  # the signals of the write in which the run ends
        train(small_module(), tmp_path, 9, AfterBatch(2, send(signal.SIGTERM)), StopOnSignal())
    assert step(tmp_path / "last.ckpt") == 2


def test_held_signals_are_handled_once_after_the_block() -> None:
    received: list[int] = []
    before = install(lambda number, frame: received.append(number), signal.SIGINT)
    try:
        with held():
            send(signal.SIGHUP, signal.SIGINT)()
            assert received == []
        assert received == [signal.SIGHUP]
    finally:
        restore(before)


def test_an_error_that_a_library_raises_instead_of_the_signal_is_replaced(tmp_path: Path) -> None:
    def library() -> None:
        try:
            send(signal.SIGTERM)()
        except BaseException:
            raise ValueError("too many values to unpack") from None

    with pytest.raises(StoppedBySignal, match=r"^stopped by SIGTERM$"), raise_on_signal(lambda number: None):
        library()
    action = Action(library, interrupts=True)
    with pytest.raises(StoppedBySignal, match=r"^stopped by SIGTERM after step 2$"):
        train(small_module(), tmp_path, 4, action, StopOnSignal())
    assert action.steps == []


def test_a_signal_that_arrives_where_python_cannot_raise_is_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    class Removed:
        def __del__(self) -> None:
            send(signal.SIGTERM)()

    def work() -> None:
        Removed()
        time.sleep(5)

    with pytest.raises(StoppedBySignal, match=r"^stopped by SIGTERM$"), raise_on_signal(lambda number: None):
        work()
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_signal_of_a_forked_process_does_not_end_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    ended: list[int] = []
    with raise_on_signal(ended.append):
        if not (child := os.fork()):
            with contextlib.suppress(StoppedBySignal):
                send(signal.SIGTERM)()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.5)
    assert ended == []


def test_sighup_of_a_command_that_was_started_with_nohup_has_no_effect(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_on_signal(lambda number: None):
            train(small_module(), tmp_path, 4, AfterBatch(2, send(signal.SIGHUP)), StopOnSignal())
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert step(tmp_path / "last.ckpt") == 4


class Action(PeriodicAction):
    """Calls a function in the middle of an action that takes place in every second step."""

    def __init__(self, function: Callable[[], None], *, interrupts: bool) -> None:
        super().__init__(Every(2))
        self.function, self.interrupts = function, interrupts
        self.steps: list[int] = []

    def act(self, trainer: Trainer, pl_module: LightningModule, *, after_training: bool) -> None:
        if self.interrupts:
            with interruptible():
                self.function()
        else:
            self.function()
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("num_steps", [6, 5])  # in a step, and after training
@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.full) for n in OTHERS)])
def test_a_signal_during_an_action_stops_the_run_at_once_and_the_resumed_run_repeats_the_action(
    tmp_path: Path, number: int, num_steps: int
) -> None:
    stopped_at = 4 if num_steps == 6 else 5
    action = Action(lambda: send(number)() if len(action.steps) == 1 + (num_steps == 5) else None, interrupts=True)
    with pytest.raises(StoppedBySignal, match=f"after step {stopped_at}"):
        train(small_module(), tmp_path, num_steps, action, StopOnSignal())
    assert action.steps == [2, 4][: 1 + (num_steps == 5)]
    assert step(tmp_path / "last.ckpt") == stopped_at

    again, action.function = action, lambda: None  # the same callback, as in a notebook
    again.steps.clear()
    train(small_module(), tmp_path, 7, again, StopOnSignal(), ckpt_path=tmp_path / "last.ckpt")
    assert again.steps == ([4, 6, 7] if num_steps == 6 else [6, 7])


def test_a_signal_during_another_part_of_the_last_action_waits_for_its_end(tmp_path: Path) -> None:
    action = Action(send(*NUMBERS[:1]), interrupts=False)
    with raise_on_signal(lambda number: None):  # as the commands do
        before = [signal.getsignal(number) for number in NUMBERS]
        train(small_module(), tmp_path, 1, action, StopOnSignal())
        assert [signal.getsignal(number) for number in NUMBERS] == before
    assert action.steps == [1]
    assert step(tmp_path / "last.ckpt") == 1


def test_interrupted_sample_images_equal_those_of_a_run_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(folder: str) -> SampleImages:
        return SampleImages(str(tmp_path / folder), every_n_steps=2, num_images=4, num_columns=2, num_frames=0)

    train(small_module(), tmp_path / "complete", 6, images("expected"))
    module = small_module()
    sample, calls = module.sample, iter(range(100))

    def interrupted(*arguments: Any, **settings: Any) -> torch.Tensor:
        if next(calls) == 1:
            send(signal.SIGINT)()
        return sample(*arguments, **settings)

    monkeypatch.setattr(module, "sample", interrupted)
    with pytest.raises(StoppedBySignal, match="interrupted by SIGINT after step 4"):
        train(module, tmp_path / "run", 6, images("found"), StopOnSignal())
    assert sorted(os.listdir(tmp_path / "found")) == ["step_0000002.png"]
    checkpoint = tmp_path / "run" / "last.ckpt"
    train(small_module(), tmp_path / "run", 6, images("found"), StopOnSignal(), ckpt_path=checkpoint)
    for number in (2, 4, 6):
        pictures = [Image.open(tmp_path / kind / f"step_000000{number}.png") for kind in ("expected", "found")]
        assert pictures[0].tobytes() == pictures[1].tobytes(), number
