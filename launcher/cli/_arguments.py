"""Parse the words of a verb: flags of trainctl, and Hydra's overrides between them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import override

from launcher.errors import UsageError
from launcher.suggest import closest, did_you_mean

if TYPE_CHECKING:
    from launcher.config.load import LoadedConfig


class Arguments(argparse.ArgumentParser):
    """Parser that takes flags at any position, with `_` or `-` in their names."""

    def __init__(
        self, verb: str, words: str, about: str, *examples: str, json: bool = False
    ) -> None:
        """Describe a verb for --help: its words, its purpose, and examples (which tests run)."""
        super().__init__(
            prog=f"trainctl {verb}",
            usage=" ".join(filter(None, [f"trainctl {verb}", words, "[options]"])),
            description=about,
            epilog="\n".join(["example:", *(f"  {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation could change its meaning with every new flag.
            allow_abbrev=False,
        )
        if json:
            self.add_argument("--json", action="store_true", help="print one JSON document")

    @override
    def error(self, message: str) -> NoReturn:
        # argparse would print the whole usage and exit: errors look the same for every verb, and
        # tests can catch them.
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def verb(
        self, argv: Sequence[str], verbs: Collection[str], hint: Callable[[str], str] | None = None
    ) -> tuple[str, list[str]] | None:
        """Return the verb within this one, and the words after it; None after printing the help.

        Args:
            argv: The words.
            verbs: Names of the verbs.
            hint: Returns advice for a word that is none of them; "" for the usual one.
        """
        if not argv or argv[0].startswith("-"):
            self.words(argv)
            self.print_help()
            return None
        found, *rest = argv
        if found not in verbs:
            advice = hint(found) if hint else ""
            advice = advice or did_you_mean(closest(found, verbs))
            advice = advice or f"; it can be: {', '.join(verbs)}"
            self.error(f"no verb {found!r} of {self.prog.removeprefix('trainctl ')}{advice}")
        return found, rest

    def split(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the values of the flags, and the other words in order."""
        # All words after `--` are overrides.
        before, after = list(argv), []
        if "--" in before:
            at = before.index("--")
            before, after = before[:at], before[at + 1 :]
        flags, words = self.parse_known_args([self._hyphened(word) for word in before])
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            if word.startswith("-"):
                self._unknown(word, following)
        return flags, [*words, *after]

    def words(self, argv: Sequence[str], *, at_least: int = 0, at_most: int = 0) -> Any:
        """Split the words like `split`, and check their number."""
        flags, words = self.split(argv)
        if len(words) < at_least:
            self.error(f"a word is missing: {self.usage}")
        if len(words) > at_most:
            self.error(f"unexpected word {words[at_most]!r}")
        return flags, words

    def _hyphened(self, word: str) -> str:
        head, equals, value = word.partition("=")
        if equals and re.fullmatch(r"-\w[\w.]+", head) and head not in self._option_string_actions:
            return f"-{word}"  # otherwise -max_steps=8 is the flag -m
        hyphened = head.replace("_", "-")
        return f"{hyphened}{equals}{value}" if hyphened in self._option_string_actions else word

    def _unknown(self, word: str, following: str) -> NoReturn:
        # `--lr 1e-3` and `--learning-rate=1e-3` of other tools are settings here.
        flag, equals, value = word.partition("=")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if "--config-name" in known:
            from launcher.config.aliases import instead_of_key
            from launcher.config.load import advice_for_flag

            if not equals and not following.startswith("-"):
                value = following
            advice = instead_of_key(flag, value)
            if advice or (not closest(flag, known) and (advice := advice_for_flag(flag, value))):
                raise UsageError(f"no option {flag!r}; {advice}")
        self.error(f"no option {flag!r}{did_you_mean(closest(flag, known))}")


@dataclass(frozen=True, slots=True)
class Composition:
    """Arguments of a composition: Hydra's overrides, primary config, the user's folders of YAML."""

    overrides: list[str]
    config_name: str
    config_dirs: list[Path]

    def load(self) -> LoadedConfig:
        """Compose and validate; raise ConfigError with every problem."""
        from launcher.config.load import load_config

        return load_config(self.overrides, self.config_name, self.config_dirs)


def add_composition_flags(arguments: Arguments) -> None:
    """Add `--config-dir` and `--config-name` to a verb."""
    arguments.add_argument(
        "--config-dir",
        "-cd",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="look for YAML in DIR before the packaged files; may be repeated",
    )
    arguments.add_argument(
        "--config-name",
        "-cn",
        metavar="NAME",
        default="config",
        help="compose NAME.yaml instead of config.yaml",
    )


def composition(flags: argparse.Namespace, overrides: Sequence[str]) -> Composition:
    """Return the composition of the flags of `add_composition_flags` and the other words."""
    return Composition(list(overrides), flags.config_name, flags.config_dir)
