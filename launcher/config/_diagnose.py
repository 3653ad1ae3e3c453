"""Convert errors of Hydra, OmegaConf and YAML to problems: word or line, cause, fix."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from launcher.config._provenance import COMMAND_LINE, ConfigFile
from launcher.config.aliases import instead_of_key, reason_without
from launcher.config.fields import annotations_of, field_at, other_kinds_with
from launcher.config.option_aliases import instead_of_option, instead_of_path
from launcher.contracts import GROUPS
from launcher.errors import Problem
from launcher.suggest import closest, closest_keys, did_you_mean

if TYPE_CHECKING:
    from launcher.config.compose import Loader

_CHOICES = (*GROUPS, "recipe")


def _origin_of(word: Override) -> str:
    return f"{COMMAND_LINE}: {word.input_line}"


def unparsable(word: str, error: BaseException) -> Problem:
    from launcher.config.schema import RunConfig

    origin = f"{COMMAND_LINE}: {word}"
    key, equals, _ = word.partition("=")
    if not equals and re.fullmatch(r"[\w./@-]+", word):
        if key.partition(".")[0] in {*_CHOICES, *RunConfig.model_fields}:
            return Problem(key, f"has no value; write {key}=VALUE", origin)
        message = f"{key!r} is not of the form key=value; `trainctl config show` lists the settings"
        return Problem("", message, origin)
    if meant := _other_notation(word):
        return Problem(key if equals else "", f"write {shlex.quote(meant)}", origin)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("See https", "Error parsing override", "^"))
    ]
    why = lines[0].partition(" expecting ")[0] if lines else type(error).__name__
    return Problem(
        "",
        f"{word!r} is not of the form key=value: {why}; quote values with special characters: "
        "key='\"a,b=c\"'",
        origin,
    )


def _other_notation(word: str) -> str:
    """Return a word in the notation of Python or another tool in Hydra's, or ""."""
    if match := re.fullmatch(r"([\w.]+)=\(([^()]*)\)", word):
        return f"{match[1]}=[{match[2].rstrip(', ')}]"
    if match := re.fullmatch(r"([\w.]+)(?:==|:=|:)([^=:,]+)", word):
        return f"{match[1]}={match[2]}"
    if re.fullmatch(r"[\w.]+=[^,]+,+", word):
        return word.rstrip(",")
    return ""


def sweep(word: str, parsed: Override) -> Problem:
    from launcher.config.schema import RunConfig

    key = parsed.key_or_group
    value = word.partition("=")[2]
    types = annotations_of(RunConfig, key)
    advice = instead_of_key(key, value) or instead_of_key(key.rpartition(".")[2], value)
    if not types and key not in _CHOICES and advice:
        return Problem(key, f"no such setting; {advice}", f"{COMMAND_LINE}: {word}")
    message = "has several values; run one job for each with -m"
    # Hydra takes `1,000` and `0,5` for lists of two values.
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", value):
        message += f", or write a number without commas: {key}={value.replace(',', '')}"
    elif re.fullmatch(r"0,\d+", value) and "float" in types:
        message += f", or write a number with a point: {key}={value.replace(',', '.')}"
    elif "tuple" in types:
        message += f", or write a list: {key}=[{value}]"
    return Problem(key, message, f"{COMMAND_LINE}: {word}")


def not_on_resume(word: Override) -> Problem | None:
    key = word.key_or_group
    if key == "recipe" or word.is_hydra_override():
        message = "can only be given when a run starts; name the settings that should change"
    elif key in GROUPS and word.is_delete():
        message = "a run needs every group; choose another option instead"
    else:
        return None
    return Problem(key, message, _origin_of(word))


def bad_option(word: Override, loader: Loader) -> Problem | None:
    """Return the problem of a choice of a group's option that is visible in the word, if any."""
    group, value = word.key_or_group, word.value()
    speaks_to_hydra = word.is_hydra_override() and "." in group
    if speaks_to_hydra or (word.is_delete() and value is None):
        return None
    if value is None:
        message = f"needs an option; choose one with {group}=OPTION (`trainctl list {group}`)"
        if group not in GROUPS:
            message = f"needs an option; ~{group} leaves the group out"
    elif not isinstance(value, str) and (meant := instead_of_option(group, str(value))):
        message = f"there is no option {value!r}{did_you_mean([meant])}"
    elif not isinstance(value, str):
        message = f"takes the name of one option, but is {value!r}"
        message += f"; a setting of it is written {group}.NAME=VALUE (`trainctl list {group}`)"
    elif word.is_force_add():
        message = f"is a group; write {group}={value}"
    elif _hidden(value) or not loader.has_config(f"{group}/{value}"):
        message = _no_option(group, value, loader)
    else:
        return None
    return Problem(group, message, _origin_of(word))


def _hidden(option: str) -> bool:
    """Return True if a name leaves its group, or names a file that only other files include."""
    return any(part == ".." or part.startswith("_") for part in option.split("/"))


def _no_option(group: str, value: str, loader: Loader) -> str:
    options = loader.options(group)
    name = value.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    meant = name if name in options else instead_of_option(group, name)
    hint = did_you_mean([meant] if meant in options else closest(value, options))
    if not hint and (advice := instead_of_path(group, value)):
        hint = f"; write {advice}"
    if not hint and (advice := reason_without(value)):
        hint = f"; {advice}"
    return f"there is no option {value!r}{hint or '; it can be: ' + ', '.join(options)}"


def bad_word(word: Override, error: BaseException, loader: Loader) -> list[Problem]:
    # Either the word or the file that it names may be wrong; Hydra's error does not tell.
    key = word.key_or_group
    file = _file(loader, f"{key}/{word.value()}")
    if file and (problems := _bad_file(file, error, loader)):
        return problems
    if word.is_add() and key in _CHOICES:
        message = f"is chosen already; write {key}={word.value()} without the +"
    elif isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, value = error.missing_cfg_file.rpartition("/")
        message = _no_option(group, value, loader)
    else:
        message = _first_lines(error)
    return [Problem(key, message, _origin_of(word))]


def bad_value(word: Override, error: BaseException, cfg: DictConfig) -> Problem:
    """Return the problem of a value that cannot be set, usually because the key does not exist."""
    origin = _origin_of(word)
    key = word.key_or_group
    if isinstance(word.value(), dict):
        key = str(getattr(error.__cause__, "full_key", None) or key)
    known = list(_keys(cfg))
    # `optimizer@x=sgd`: only groups have a package.
    if word.package is not None:
        hint = did_you_mean(closest(word.key_or_group, _CHOICES))
        return Problem(word.key_or_group, f"no such group{hint}", origin)
    if word.is_add() and key in known:
        return Problem(key, "is set already; leave out the +", origin)
    if key in known:
        return Problem(key, _first_lines(error), origin)
    value = str(word.input_line).partition("=")[2]
    return Problem(key, unknown_key(key, OmegaConf.to_container(cfg, resolve=False), value), origin)


def needed(word: Override, cfg: DictConfig) -> Problem | None:
    """Return the problem of deleting a required setting, if it is one."""
    from launcher.config.schema import RunConfig

    key = word.key_or_group
    # Only keys of a free mapping have no field, and can be deleted.
    field = field_at(RunConfig, OmegaConf.to_container(cfg, resolve=False), key)
    if field is None:
        return None
    nullable = type(None) in get_args(field.annotation)
    hint = f"; write {key}=null to switch it off" if nullable else ""
    return Problem(key, f"cannot be left out{hint}", _origin_of(word))


def no_groups(config_name: str, loader: Loader) -> Problem:
    file = _file(loader, config_name)
    return Problem(
        "",
        f"{config_name}.yaml chooses no groups; begin it with `defaults: [config, _self_]`, or put "
        f"it into a folder recipe/ and write recipe={config_name}",
        file.shown if file else "--config-name",
    )


def unknown_key(key: str, mapping: Any, value: str = "") -> str:
    """Return the message for a key that a composed config does not have."""
    from launcher.config.schema import RunConfig

    known = [*_keys(mapping), *_CHOICES]
    parent, _, last = key.rpartition(".")
    field = field_at(RunConfig, mapping, parent) if parent in known else None
    if field is not None and "dict[" in str(field.annotation):
        return f"is not there yet; add it with +{key}=VALUE"
    # Names of other tools before similar ones: `learning_rate` is meant for `optimizer.lr`,
    # whatever it resembles.
    if advice := instead_of_key(key, value):
        return f"no such setting; {advice}"
    if found := closest_keys(key, known):
        return f"no such setting{did_you_mean(found)}"
    advice = instead_of_key(last, value)
    if key.partition(".")[0] not in known:
        advice = advice or reason_without(key.partition(".")[0])
    values = mapping.get(key.partition(".")[0]) if isinstance(mapping, dict) else None
    if isinstance(values, dict):
        return _unknown_in(key.partition(".")[0], last, values, advice)
    return f"no such setting; {advice or '`trainctl config show` lists them'}"


def _unknown_in(group: str, field: str, values: dict[Any, Any], advice: str) -> str:
    """Return the message for a field that a group's kind does not have."""
    if others := other_kinds_with(group, field, values.get("kind")):
        return f"no such setting{others}"
    return f"no such setting; {advice or f'{group} has: ' + ', '.join(map(str, values))}"


def bad_files(
    error: BaseException, loader: Loader, config_name: str, chosen: Sequence[Override]
) -> list[Problem]:
    """Return the problems of the YAML files, if no word is the cause."""
    paths = [config_name]
    paths += re.findall(r"[Ii]n '([^'\n]+)'", str(error))
    paths += [f"{word.key_or_group}/{word.value()}" for word in chosen if word.value()]
    if not loader.has_config(config_name):
        options = loader.options("")
        hint = did_you_mean(closest(config_name, options))
        name = config_name.rpartition("/")[2].removesuffix(".yaml")
        if name in loader.options("recipe"):
            hint = f"; write recipe={name}"
        if "/" in config_name:
            folder = config_name.rpartition("/")[0]
            hint = f"; write --config-dir {folder} --config-name {name}"
        hint = hint or f"; there are: {', '.join(options)}"
        return [Problem("", f"there is no primary config {config_name!r}{hint}", "--config-name")]
    # The files that the error names first. Hydra's errors of YAML often name none: then all.
    files = [file for path in dict.fromkeys(paths) if (file := _file(loader, path))]
    for file in [*files, *_every_file(loader)]:
        if problems := _bad_file(file, error, loader):
            return problems
    return [Problem("", _first_lines(error), ", ".join(file.shown for file in files[1:2]))]


def _bad_file(file: ConfigFile, error: BaseException, loader: Loader) -> list[Problem]:
    """Return the problems of a file that may be why composing failed."""
    try:
        # Parsed again, because Hydra's errors have no line.
        root = yaml.compose(file.text(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as invalid:
        return [_invalid(file, invalid)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as unreadable:
        return [Problem("", f"cannot be read: {unreadable}", file.shown)]
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is not None and isinstance(error, yaml.MarkedYAMLError) and file.is_named(mark.name):
        return [_invalid(file, error)]
    return list(_bad_defaults(root, file, loader))


def _invalid(file: ConfigFile, error: yaml.MarkedYAMLError) -> Problem:
    what = " ".join(filter(None, [error.context, error.problem]))
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    return Problem("", f"not valid YAML: {what}", f"{file.shown}:{line}")


def _file(loader: Loader, config_path: str) -> ConfigFile | None:
    if not loader.has_config(config_path):
        return None
    for source in loader.repository.get_sources():
        if source.scheme() in {"file", "pkg", "recipes"} and source.is_config(config_path):
            return ConfigFile(f"{source.scheme()}://{source.path}", config_path)
    return None


def _every_file(loader: Loader) -> Iterator[ConfigFile]:
    for group in ("", *_CHOICES):
        for option in loader.repository.get_group_options(group):
            file = _file(loader, f"{group}/{option}" if group else option)
            if file is not None and not file.folder.startswith("pkg://hydra"):
                yield file


def _bad_defaults(root: yaml.Node | None, file: ConfigFile, loader: Loader) -> Iterator[Problem]:
    """Yield the problems of a file's defaults list."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    folder = file.config_path.rpartition("/")[0]
    for key, value in pairs:
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for item in value.value:
            for message in _bad_item(item, folder, loader):
                where = f"{file.shown}:{item.start_mark.line + 1}"
                yield Problem("defaults", message, where)


def _bad_item(item: yaml.Node, folder: str, loader: Loader) -> Iterator[str]:
    # Names without a slash in front are relative to the file's own group, as in Hydra.
    if isinstance(item, yaml.ScalarNode):
        name = item.value.partition("@")[0]
        path = name.removeprefix("/") if name.startswith("/") or not folder else f"{folder}/{name}"
        if name != "_self_" and not loader.has_config(path):
            siblings = loader.repository.get_group_options(folder)
            yield f"there is no {name!r}{did_you_mean(closest(name, ['_self_', *siblings]))}"
        return
    if not isinstance(item, yaml.MappingNode):
        return
    for key, value in item.value:
        *keywords, place = key.value.split(" ")
        for keyword in keywords:
            if keyword not in {"override", "optional"}:
                hint = did_you_mean(closest(keyword, ["override", "optional"]))
                yield f"{keyword!r} is no keyword{hint}"
        name = place.partition("@")[0]
        group = name.removeprefix("/") if name.startswith("/") or not folder else f"{folder}/{name}"
        if not loader.has_group(group):
            slash = "/" if name.startswith("/") else ""
            found = [f"{slash}{near}" for near in closest(name.removeprefix("/"), _CHOICES)]
            yield f"there is no group {name!r}{did_you_mean(found)}"
        elif (
            isinstance(value, yaml.ScalarNode)
            and value.tag == "tag:yaml.org,2002:str"
            and "$" not in value.value
            and not loader.has_config(f"{group}/{value.value}")
            and "optional" not in keywords
        ):
            yield f"{group}: {_no_option(group, value.value, loader)}"


def _first_lines(error: BaseException) -> str:
    """Return the text of an exception of Hydra, without advice that does not apply here."""
    texts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    useful = [
        line
        for line in lines
        if line
        and not line.startswith(
            ("full_key", "object_type", "To append", "Config search path", "See https")
        )
    ]
    # OmegaConf names its own classes, which no user of YAML knows.
    if types := re.search(r"Cannot merge (Dict|List)Config with (Dict|List)Config", str(texts)):
        names = {"Dict": "a mapping", "List": "a list"}
        return f"must be {names[types[2]]}, but is {names[types[1]]}"
    return ": ".join(useful[:2]) or type(error).__name__


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values and mappings of a config."""
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=False)
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
