import pytest

from diffusion_lab.reporting import progress, text_tables


def test_lines_have_the_completed_items_the_speed_and_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("diffusion_lab.reporting.progress.time.monotonic", lambda: now)
    with progress.progress_bar("sampling", 5000) as advance:
        now += 5
        advance(500)
        assert capsys.readouterr().err == ""
        now += 15
        advance(1500)
    assert capsys.readouterr().err == "sampling: 2,000/5,000  100.0 images/s  0:00:30 left\n"


def test_a_total_of_0_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("sampling", 0) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (65.4, "0:01:05"), (36_059.6, "10:01:00")])
def test_durations_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert text_tables.format_duration(seconds) == text
