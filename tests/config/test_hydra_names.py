"""The private names of Hydra that launcher.config leans on."""

from __future__ import annotations

import inspect

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type] # any callable


def test_they_are_there_and_take_what_we_give() -> None:
    assert parameters(ConfigLoaderImpl) == ["config_search_path"]
    compose = ConfigLoaderImpl._compose_config_from_defaults_list
    assert parameters(compose) == ["self", "defaults", "repo"]
    parse = ConfigLoaderImpl._parse_overrides_and_create_caching_repo
    assert parameters(parse) == ["self", "config_name", "overrides"]
    wanted = ["repo", "config_name", "overrides_list", "prepend_hydra", "skip_missing"]
    assert parameters(create_defaults_list) == wanted
    assert parameters(ConfigLoaderImpl._apply_overrides_to_config) == ["overrides", "cfg"]
    assert parameters(BasicSweeper.split_arguments) == ["overrides", "max_batch_size"]
    assert parameters(FileConfigSource) == ["provider", "path"]
    assert get_args_parser().parse_intermixed_args(["-m", "a=1"]).overrides == ["a=1"]


def test_applying_an_override_still_works_in_place() -> None:
    cfg = OmegaConf.create({"a": {"b": 1}})
    words = OverridesParser.create().parse_overrides(["a.b=2", "+a.c=[3]"])
    ConfigLoaderImpl._apply_overrides_to_config(words, cfg)
    assert OmegaConf.to_container(cfg) == {"a": {"b": 2, "c": [3]}}
