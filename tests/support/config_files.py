"""Compose configs faster: tests and commands compose hundreds of them from the same files."""

import copy
import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import omegaconf._utils
import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.grammar_parser import parse

CONF = Path(__file__).resolve().parents[2] / "conf"
FOLDERS = (str(CONF), str(Path(hydra.__file__).parent))
SOURCES = (f"file://{CONF}", "pkg://hydra.conf", "structured://")
"""Sources of configs that do not change while tests run: conf/, Hydra's files and the dataclasses of its plugins."""


def parse_once() -> None:
    """Parse and merge the same config files once per process, which takes most of the time to compose.

    The composed configs stay the same.
    """
    _parse_files_once()
    _find_entries_once()
    _merge_files_once()
    omegaconf.base.parse = omegaconf._utils.parse = functools.cache(parse)  # type: ignore[attr-defined]
    _collect_choices_only_for_interpolations()


def _parse_files_once() -> None:
    """Let OmegaConf.load return copies for the files of conf/ and Hydra's own configs; composing reads about forty."""
    load, parsed = OmegaConf.load, dict[str, bytes]()

    def load_once(file: Any) -> Any:
        path = str(file if isinstance(file, (str, Path)) else getattr(file, "name", file))
        if not path.startswith(FOLDERS):
            return load(file)
        if path not in parsed:
            parsed[path] = pickle.dumps(load(file))
        return pickle.loads(parsed[path])  # twice as fast as copy.deepcopy

    OmegaConf.load = load_once  # type: ignore[assignment]


def _find_entries_once() -> None:
    """Read the defaults list of each config file once; Hydra builds it with the slow operations of OmegaConf."""
    load, loaded = ConfigRepository.load_config, dict[tuple[str, str], bytes]()

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.full_path() not in SOURCES:
            return load(self, config_path)
        key = source.full_path(), config_path
        if key not in loaded:
            loaded[key] = pickle.dumps(load(self, config_path))
        result: ConfigResult = pickle.loads(loaded[key])
        return result

    def share_sources(self: CachingConfigRepository, delegate: ConfigRepository) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}  # a deep copy takes a tenth of the time of composing

    ConfigRepository.load_config = load_once  # type: ignore[method-assign]
    CachingConfigRepository.__init__ = share_sources  # type: ignore[assignment, method-assign]


def _merge_files_once() -> None:
    """Merge the files of the same defaults list once. Overrides of values are applied later, to a copy."""
    merge, merged = ConfigLoaderImpl._compose_config_from_defaults_list, dict[Any, bytes]()

    def merge_once(
        self: ConfigLoaderImpl, defaults: Sequence[ResultDefault], repo: CachingConfigRepository
    ) -> DictConfig:
        results = [repo.load_config(default.config_path) for default in defaults]  # type: ignore[arg-type]
        if not all(result is not None and result.path in SOURCES for result in results):
            return merge(self, list(defaults), repo)
        key = tuple((default.config_path, default.package, default.primary) for default in defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, list(defaults), repo))
        config: DictConfig = pickle.loads(merged[key])
        return config

    ConfigLoaderImpl._compose_config_from_defaults_list = merge_once  # type: ignore[assignment, method-assign]


def _collect_choices_only_for_interpolations() -> None:
    """Hydra collects the choices of all groups for each config file, but uses them only if a choice is interpolated."""
    collect = defaults_list._create_interpolation_map

    def collect_if_used(overrides: Overrides, elements: list[InputDefault], self_added: bool) -> DictConfig:
        used = any(element.is_interpolation() for element in elements)
        return collect(overrides, elements, self_added) if used else DictConfig({})

    defaults_list._create_interpolation_map = collect_if_used  # type: ignore[assignment]
