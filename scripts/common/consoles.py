"""Output on consoles and in files that cannot show every letter."""

import io
import sys


def show_what_can_be_shown() -> None:
    """
    Print letters that the encoding of the output does not have, such as the β of a table under Windows' code page, as
    `\\u03b2`, where Python would end with an error after the work.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
