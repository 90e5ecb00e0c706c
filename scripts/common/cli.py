"""What every command reads from the terminal, and says on it."""

import logging

from transformers import HfArgumentParser


def set_up_logging(level: int = logging.INFO) -> None:
    """Our messages as plain lines; of the HTTP client, which tells of every request, warnings only."""
    logging.basicConfig(level=level, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


def read_flags(parser: HfArgumentParser, argv: list[str] | None, hint: str = "") -> tuple:
    """
    The dataclasses of a parser, filled from a command line.

    Args:
        parser (`HfArgumentParser`): The parser.
        argv (`list[str]`, *optional*): The words after the command; by default those of this process.
        hint (`str`, *optional*): What else to say of words that are no flags.

    Raises:
        `SystemExit`: with the parser's message, for a flag that does not exist or a value that does not fit.
    """
    *filled, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments {' '.join(unknown)}{hint}")
    return tuple(filled)


def check_at_least_1(arguments: object, *names: str) -> None:
    """Raises `ValueError`, naming the flag and its value, for a flag that is below 1; `None` stands for a default."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: it must be at least 1.")
