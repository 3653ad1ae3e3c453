"""Parser of a verb's words: flags of trainctl, and Hydra's override words between them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
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
    """Parser that takes flags anywhere among the words; `--config_dir` is `--config-dir` too."""

    def __init__(
        self, verb: str, words: str, about: str, *examples: str, json: bool = False
    ) -> None:
        """Describe one verb.

        Args:
            verb: What is typed after `trainctl`.
            words: The words it takes, as usage shows them; "" for none.
            about: What it does, in a sentence or two.
            examples: Command lines that work, shown by --help.
            json: Whether it takes `--json`.
        """
        super().__init__(
            prog=f"trainctl {verb}",
            usage=" ".join(filter(None, [f"trainctl {verb}", words, "[options]"])),
            description=about,
            epilog="\n".join(["example:", *(f"  {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if json:
            self.add_argument("--json", action="store_true", help="print one JSON document")

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def split(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of the flags, and the other words in order.

        Raises:
            UsageError: A flag is unknown, or has no value or a wrong one.
        """
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
        """Like `split`, where the number of words is limited.

        Raises:
            UsageError: As `split`, or there are too few or too many words.
        """
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
        flag, equals, value = word.partition("=")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if "--config-name" in known and not closest(flag, known):
            from launcher.config.load import advice_for_flag

            if not equals and not following.startswith("-"):
                value = following
            if advice := advice_for_flag(flag, value):
                raise UsageError(f"no option {flag!r}; {advice}")
        self.error(f"no option {flag!r}{did_you_mean(closest(flag, known))}")


@dataclass(frozen=True, slots=True)
class Composition:
    """Arguments of a composition.

    Attributes:
        overrides: Words in Hydra's override grammar.
        config_name: The primary config.
        config_dirs: The user's folders, searched before the packaged files.
    """

    overrides: list[str]
    config_name: str
    config_dirs: list[Path]

    def load(self) -> LoadedConfig:
        """Compose and validate.

        Raises:
            ConfigError: Every problem in the config.
        """
        from launcher.config.load import load_config

        return load_config(self.overrides, self.config_name, self.config_dirs)


def add_composition_flags(arguments: Arguments) -> None:
    """Let a verb take `--config-dir` and `--config-name`."""
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
    """Return the composition that the flags of `add_composition_flags` and the other words name."""
    return Composition(list(overrides), flags.config_name, flags.config_dir)
