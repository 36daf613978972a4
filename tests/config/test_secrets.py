"""Which values of environment variables are secret."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_lab.config import resolvers, secrets
from diffusion_lab.config.secrets import hidden, is_secret, without_secrets
from diffusion_lab.runs import status as run_status


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolvers
    monkeypatch.setattr(secrets, "_read", set())


def test_a_short_secret_that_a_setting_reads_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "ab12")
    assert not is_secret("ab12")
    config = OmegaConf.create({"url": "https://me:${oc.env:DB_PASSWORD}@host", "note": "${oc.env:DB_PASSWORD}", "a": 3})
    plain = OmegaConf.to_container(config, resolve=True)
    assert without_secrets(plain) == {"url": None, "note": None, "a": 3}
    assert hidden("got ab12, not ab123") == "got ***, not ab123"


@pytest.mark.parametrize("value", ["lightning", "cifar10", "unet_quick", str(Path.home()), "true"])
def test_words_of_conf_and_paths_are_no_secrets(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYBOARD", value)
    for text in (value, f"{value}.Trainer", f"a {value}/b"):
        assert not is_secret(text)
        assert hidden(text) == text
    assert OmegaConf.create({"data": "${oc.env:KEYBOARD}"}).data == value
    assert is_secret(value)


def test_a_missing_variable_has_its_default() -> None:
    config = OmegaConf.create({"a": "${oc.env:NO_SUCH_KEY,5}", "b": "${oc.env:NO_SUCH_KEY,null}"})
    assert (config.a, config.b) == ("5", None)


def test_the_reason_of_a_failed_run_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    run_status.mark_running(tmp_path)
    run_status.mark_failed(tmp_path, "data.path must be a folder, got /a/s3cret-value.")
    status = run_status.read(tmp_path)
    assert status is not None
    assert re.fullmatch(r"data\.path must be a folder, got /a/\*\*\*\.", status.reason or "")
