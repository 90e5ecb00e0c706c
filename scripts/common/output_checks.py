"""Whether a result can be written is found out before the work, not after it."""

import tempfile
from pathlib import Path


def check_writable(path: Path, flag: str) -> None:
    """
    Refuse a place that cannot be written to, without leaving anything there.

    Args:
        path (`Path`): A folder that is there or will be made, or a file in such a folder.
        flag (`str`): Whose value it is, for the message.

    Raises:
        `ValueError`: naming the flag, the path, and what is in the way.
    """
    place = path.absolute()
    try:
        if place.is_file():  # what replaces it is written beside it
            place = place.parent
        while not place.exists():
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()  # empty: of several processes most may write nothing
    except OSError as error:
        raise ValueError(f"{flag} is {path}: {place} cannot be written to: {error.strerror}.") from error
