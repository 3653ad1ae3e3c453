"""Compose a config with Hydra; add the origins of values and collect problems.

Private names of Hydra that this package uses, each present in 1.3.8 and 1.4:
`ConfigLoaderImpl` with `_parse_overrides_and_create_caching_repo`,
`_compose_config_from_defaults_list` and `_apply_overrides_to_config`; `create_defaults_list`,
`FileConfigSource` (_hydra_ext), `BasicSweeper.split_arguments` (load), `get_args_parser`
(multirun).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from typing_extensions import override

from launcher.config import _diagnose, _hydra_ext, _words
from launcher.config._hydra_settings import FOREIGN, NoSearchPathLoader
from launcher.config._interpolation import escaped, resolved
from launcher.config._provenance import COMMAND_LINE, ConfigFile, Origin, Origins
from launcher.config.paths import CONF, expand_home, is_packaged
from launcher.config.problems import leaves, without_consequences
from launcher.contracts import GROUPS
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest

# Errors of Hydra, OmegaConf and YAML for mistakes of a user. Hydra checks some of its inputs with
# assertions, and built-in errors of its own defects come through.
COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    UserWarning,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed config: JSON values, with interpolations resolved, and their writers in order."""

    mapping: dict[str, Any]
    origins: tuple[Origin, ...]

    def why(self, key: str) -> list[Origin]:
        """Return every writer of a key, its parents and its children; the last one wins."""
        return [
            origin
            for origin in self.origins
            if key in {origin.key, ""}
            or key.startswith(f"{origin.key}.")
            or origin.key.startswith(f"{key}.")
        ]

    def origin(self, key: str) -> str:
        """Return the last writer of a key for messages, or ""."""
        writers = self.why(key)
        return str(writers[-1]) if writers else ""

    def attributed(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return the problems, each with the last writer of its key."""
        return [
            problem
            if problem.origin or not problem.key
            else replace(problem, origin=self.origin(problem.key))
            for problem in problems
        ]

    def preset_values(self) -> dict[str, Any]:
        """Return the leaves whose last writer is a packaged preset."""
        found: dict[str, Any] = {}
        for key, value in leaves(self.mapping):
            writers = self.why(key)
            if writers and writers[-1].is_preset:
                found[key] = value
        return found

    def without_packaged_limit(self) -> Composed:
        """Remove the packaged `max_steps` if the user set only `max_epochs`."""
        epochs, steps = self.origin("max_epochs"), self.origin("max_steps")
        # `max_epochs=1` would otherwise end at the preset's number of steps, without a message.
        given = self.mapping.get("max_epochs") is not None and not is_packaged(epochs)
        if not given or self.mapping.get("max_steps") is None or not is_packaged(steps):
            return self
        where, _, text = epochs.partition(": ")
        lifted = Origin("max_steps", where, text)
        return Composed({**self.mapping, "max_steps": None}, (*self.origins, lifted))

    def provenance(self) -> dict[str, str]:
        """Return the last writer of every leaf."""
        return {key: self.origin(key) for key, _ in leaves(self.mapping)}


class Loader(NoSearchPathLoader):
    """Hydra's loader, which records the composed files in the order of merging."""

    read: Sequence[tuple[str, ConfigFile]] = ()

    @override
    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> DictConfig:
        loaded = [(default, repo.load_config(default.config_path)) for default in defaults]
        self.read = [
            (default.package or "", ConfigFile(result.path, default.config_path, result.provider))
            for default, result in loaded
            if result.path.startswith(("file://", "recipes://"))
        ]
        cfg: DictConfig = super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)
        return cfg

    def has_group(self, path: str) -> bool:
        """Return True if a source has a group."""
        # A name that is too long, or has a NUL, raises instead of not existing.
        try:
            return bool(self.repository.group_exists(path))
        except (OSError, ValueError):
            return False

    def has_config(self, path: str) -> bool:
        """Return True if a source has a config."""
        try:
            return bool(self.repository.config_exists(path))
        except (OSError, ValueError):
            return False

    def options(self, group: str) -> list[str]:
        """Return a group's options, without files (`_name`) that only other files include."""
        found: list[str] = self.repository.get_group_options(group)
        return [option for option in found if not option.startswith("_")]

    def compose(self, config_name: str, words: Sequence[str]) -> DictConfig:
        """Merge the files that the primary config and choices of groups name."""
        cfg = self._without_hydra(config_name, words)
        if cfg is None:
            cfg = self.load_configuration(config_name, list(words), RunMode.RUN)
            with open_dict(cfg):
                del cfg["hydra"]
        return cfg

    def _without_hydra(self, config_name: str, words: Sequence[str]) -> DictConfig | None:
        """Return what `compose` returns, in half the time, or None where Hydra must compose."""
        # Hydra reads its own config, too, which is only needed where a file or a word is about it;
        # and its message for what is wrong is the one that is explained.
        try:
            parsed, repo = self._parse_overrides_and_create_caching_repo(config_name, list(words))
            foreign = [each for each in repo.get_sources() if each.provider.startswith(FOREIGN)]
            if any(source.is_group("hydra") for source in foreign):
                return None
            listed = create_defaults_list(
                repo=repo,
                config_name=config_name,
                overrides_list=parsed,
                prepend_hydra=False,
                skip_missing=False,
            )
            cfg = self._compose_config_from_defaults_list(listed.defaults, repo)
        except COMPOSITION_ERRORS:
            return None
        if listed.config_overrides or "hydra" in cfg:
            return None
        OmegaConf.set_struct(cfg, value=True)
        return cfg


def compose(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dirs: Sequence[str | Path] = (),
) -> Composed:
    """Compose a config without validation; raise ConfigError with every problem."""
    composed, problems = compose_leniently(overrides, config_name, config_dirs)
    if problems or composed is None:
        raise ConfigError(problems)
    return composed


def compose_leniently(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dirs: Sequence[str | Path] = (),
) -> tuple[Composed | None, list[Problem]]:
    """Compose as far as possible without the invalid words; return also every problem."""
    # Hydra stops at the first error. Here the rest is composed, so that the user sees all mistakes
    # at once, with the schema's.
    with _hydra_ext.search_path_of(config_dirs), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loader = make_loader()
        words, problems = parsed(overrides, loader)
        origins = Origins()
        words = _permitted(words, origins)
        cfg = _merged(loader, config_name, words, problems)
        if cfg is None:
            return None, problems + origins.refused
        for package, file in loader.read:
            origins.add_file(file, package)
        apply(words, cfg, problems, origins, loader)
        # A misspelt `defaults` is reported better by the schema.
        if _has_no_groups(cfg):
            problems.append(_diagnose.no_groups(config_name, loader))
            return None, problems + origins.refused
        mapping = resolved(cfg, problems)
    composed = Composed(mapping, tuple(origins.written))
    return composed, composed.attributed(without_consequences(problems + origins.refused))


def recompose(
    stored: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Composed, list[Problem]]:
    """Apply overrides to a resolved config, for `resume`; return also every problem."""
    # A word that chooses an option takes that group from a new composition. Everything else keeps
    # its stored value, even if the packaged files have changed since.
    with _hydra_ext.search_path_of(()), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loader = make_loader()
        words, problems = parsed(overrides, loader)
        for word in list(words):
            if problem := _diagnose.not_on_resume(word):
                problems.append(problem)
                words.remove(word)
        origins = Origins()
        words = _permitted(words, origins)
        fresh = _merged(loader, "config", words, problems)
        cfg = OmegaConf.create(escaped(stored))
        for package, file in loader.read:
            origins.add_file(file, package)
        for word in words:
            if fresh is not None and chooses_group(word, loader):
                cfg[word.key_or_group] = fresh[word.key_or_group]
        OmegaConf.set_struct(cfg, value=True)
        apply(words, cfg, problems, origins, loader)
        mapping = resolved(cfg, problems)
    composed = Composed(mapping, tuple(origins.written))
    return composed, composed.attributed(problems + origins.refused)


def make_loader() -> Loader:
    """Return a loader with the search path of the context (`_hydra_ext.search_path_of`)."""
    # Jobs of hydra.main compose, too, while hydra.main uses Hydra's only global instance.
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF), job_name="trainctl", **_hydra_ext.base()):
            return Loader(GlobalHydra.instance().config_loader().get_search_path())
    finally:
        GlobalHydra.instance().hydra = outer


def parsed(overrides: Sequence[str], loader: Loader) -> tuple[list[Override], list[Problem]]:
    """Return the words in Hydra's override grammar, and the problems of the others."""
    parser = OverridesParser.create()
    words: list[Override] = []
    readable, problems = _words.readable(overrides, loader)
    # One by one: the parser stops at the first word that it does not understand.
    for word in expand_home(readable):
        try:
            [each] = parser.parse_overrides([word])
        except COMPOSITION_ERRORS as error:
            problems.append(_diagnose.unparsable(word, error))
            continue
        if each.is_sweep_override():
            problems.append(_diagnose.sweep(word, each))
        else:
            words.append(each)
    return words, problems


def _permitted(words: Sequence[Override], origins: Origins) -> list[Override]:
    """Return the words without those that no config may contain."""
    return [
        word
        for word in words
        if not origins.refuses(str(word.input_line), word.key_or_group, word.value())
    ]


def chooses_group(word: Override, loader: Loader) -> bool:
    """Return True if a word chooses a group's option or is of Hydra, and sets no value."""
    if word.is_hydra_override():
        return True
    is_group = word.key_or_group in {*GROUPS, "recipe"} or loader.has_group(word.key_or_group)
    return is_group and not isinstance(word.value(), dict)


def _has_no_groups(cfg: DictConfig) -> bool:
    """Return True if nothing chooses options: at most, keys set fields of some groups."""
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)  # noqa: S101 - a config is a mapping
    if any(closest(str(key), ["defaults"]) for key in values):
        return False
    found = [values[group] for group in GROUPS if group in values]
    # Of a config that does choose them, a misspelt `kind` leaves the groups.
    few = len(found) < len(GROUPS) / 2
    return few and all(isinstance(value, dict) and "kind" not in value for value in found)


def _merged(
    loader: Loader, config_name: str, words: list[Override], problems: list[Problem]
) -> DictConfig | None:
    """Merge all files; move each word that Hydra cannot merge from `words` to `problems`."""
    chosen = []
    for word in [word for word in words if chooses_group(word, loader)]:
        if problem := _diagnose.bad_option(word, loader):
            problems.append(problem)
            words.remove(word)
        else:
            chosen.append(word)
    while True:
        try:
            return loader.compose(config_name, [str(word.input_line) for word in chosen])
        except COMPOSITION_ERRORS as error:
            culprit = _culprit(loader, config_name, chosen, error)
            if culprit is None:
                problems += _diagnose.bad_files(error, loader, config_name, chosen)
                return None
            problems += _diagnose.bad_word(culprit[0], culprit[1], loader)
            chosen.remove(culprit[0])
            words.remove(culprit[0])


def _culprit(
    loader: Loader, config_name: str, chosen: Sequence[Override], error: BaseException
) -> tuple[Override, BaseException] | None:
    """Return the word that causes an error, and the error."""
    # Hydra's errors name no word. The cause is the one without which composing succeeds, or fails
    # for another reason.
    for word in chosen:
        rest = [str(other.input_line) for other in chosen if other is not word]
        try:
            loader.compose(config_name, rest)
        except COMPOSITION_ERRORS as other:
            if str(other) == str(error):
                continue
        return word, error
    return None


def apply(
    words: Sequence[Override],
    cfg: DictConfig,
    problems: list[Problem],
    origins: Origins,
    loader: Loader,
) -> None:
    """Set values one by one, and add a problem for each that cannot be set."""
    # One by one: Hydra would stop at the first, and the user would see one mistake per attempt.
    for word in words:
        key, line = word.key_or_group, str(word.input_line)
        if chooses_group(word, loader):
            # The choice of a group comes before its files in the list of writers: they wrote the
            # values.
            origins.written.insert(0, Origin(key, COMMAND_LINE, line))
            continue
        if word.is_delete() and (problem := _diagnose.needed(word, cfg)):
            problems.append(problem)
            continue
        try:
            _check_parents(key, cfg)
            ConfigLoaderImpl._apply_overrides_to_config([word], cfg)  # noqa: SLF001 - see the module's docstring
        except COMPOSITION_ERRORS as error:
            problems.append(_diagnose.bad_value(word, error, cfg))
        else:
            origins.add_word(line, key, word.value())


def _check_parents(key: str, cfg: DictConfig) -> None:
    """Raise ConfigKeyError if a parent of a key is a value."""
    # Hydra would replace the value by a mapping before it reports the error.
    node: Any = cfg
    for part in key.split(".")[:-1]:
        if isinstance(node, DictConfig) and part in node:
            node = node[part]
        elif isinstance(node, ListConfig) and part.isdecimal():
            node = node[int(part)]
        else:
            return
        if not OmegaConf.is_config(node):
            raise ConfigKeyError(f"{part} is a value without settings")
