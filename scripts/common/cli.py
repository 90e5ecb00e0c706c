"""How every command reads its flags, explains them and logs. Imports no torch: `--help` must not wait for it."""

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import fields
from typing import get_type_hints

from transformers import HfArgumentParser


class CommandParser(HfArgumentParser):
    """
    [`~transformers.HfArgumentParser`] with a help that is made for reading: flags stand in groups, one for each
    dataclass that declares some, named by its `_argument_group_name`; defaults are shown once; an example ends it.

    Args:
        flags (dataclass, or iterable of them): What is read, in this order.
        documentation (`str`): Docstring of the command; what stands below its line "Example:" ends the help.
        positional (`str`, *optional*, defaults to `""`): What else the usage shows, before the options.
    """

    def __init__(self, flags: type | Iterable[type], documentation: str, positional: str = ""):
        description, _, example = documentation.partition("Example:\n")
        super().__init__(
            flags,
            formatter_class=_HelpFormatter,
            description=description.strip(),
            epilog=f"example:\n{example.rstrip()}",
        )
        required = [f"{action.option_strings[0]} {action.dest.upper()}" for action in self._actions if action.required]
        self.usage = " ".join(["%(prog)s", *filter(None, [positional]), *required, "[options]"])

    def _add_dataclass_arguments(self, dtype: type) -> None:
        types, groups = get_type_hints(dtype), {}
        for field in fields(dtype):
            owner = next(cls for cls in reversed(dtype.__mro__) if field.name in vars(cls).get("__annotations__", {}))
            title = getattr(owner, "_argument_group_name", f"{owner.__name__} of {owner.__module__.split('.')[0]}")
            field.type = types[field.name]
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            self._parse_dataclass_field(groups[title], field)

    def read_flags(self, argv: list[str] | None, hint: str = "") -> tuple:
        """
        The dataclasses of the parser, filled from a command line.

        Args:
            argv (`list[str]`, *optional*): The words after the command; by default those of this process.
            hint (`str`, *optional*): What else to say about words that are no flags.

        Raises:
            `SystemExit`: with the parser's message, for a flag that does not exist or a value that does not fit.
        """
        words = [_at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
        *filled, unknown = self.parse_args_into_dataclasses(words, return_remaining_strings=True)
        if unknown:
            self.error(f"unknown arguments {' '.join(unknown)}{hint}")
        return tuple(filled)

    def given_flags(self, argv: list[str] | None) -> set[str]:
        """The flags that a command line names, also those at their default value."""
        absent = object()
        names = argparse.Namespace(**{action.dest: absent for action in self._actions})
        read, _ = self.parse_known_args(sys.argv[1:] if argv is None else argv, names)
        return {name for name, value in vars(read).items() if value is not absent}


def _at_home(word: str) -> str:
    """`--flag=~/x` and quoted `~/x` as a shell reads `~/x`: no shell has seen that they are paths."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.MetavarTypeHelpFormatter):
    """Each flag under one name, with its type and, unless it is empty or explained in words, its default."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            # Indented lines are commands.
            paragraph if "\n    " in paragraph else textwrap.fill(paragraph, width, break_long_words=False)
            for paragraph in text.split("\n\n")
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return action.dest.upper()
        if action.nargs in (0, "?"):  # switches
            return ", ".join(action.option_strings[:2] if action.dest == "help" else action.option_strings[:1])
        return (
            f"{action.option_strings[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        if action.nargs == 0 and action.dest != "help":  # --no_<flag>, whose help is that of the flag
            return f"Switch --{action.dest} off."
        default = action.default
        if default is None or default is False or default in ("", [], argparse.SUPPRESS) or "default:" in action.help:
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help} (default: {shown})"


def set_up_logging(level: int = logging.INFO) -> None:
    """
    Our messages as plain lines; of the HTTP client, which logs every request, warnings only, and nothing of torch's
    profiler, which reads this when torch is imported: call it before.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    logging.basicConfig(level=level, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


def check_threshold(threshold: float) -> None:
    """Raises `ValueError` unless a threshold of probabilities can tell them apart."""
    if not 0 < threshold < 1:
        raise ValueError(f"--threshold is {threshold}: it must lie between 0 and 1, both excluded.")


def check_at_least_1(arguments: object, *names: str) -> None:
    """Raises `ValueError`, naming the flag and its value, for a flag that is below 1; `None` stands for a default."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: it must be at least 1.")
