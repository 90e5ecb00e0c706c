"""Whether a result can be written is found out before the work, not after it."""

import tempfile
from pathlib import Path


def check_writable(path: Path, flag: str) -> None:
    """
    Args:
        path (`Path`): A folder that will be made, or exists, or a file whose folder will be made.
        flag (`str`): What it is the value of, for the message.

    Raises:
        `ValueError`: If nothing can be written there.
    """
    folder = path
    while not folder.is_dir():
        if folder.exists() and folder != path:
            raise ValueError(f"{flag} is {path}, and {folder} is a file: choose another.")
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        raise ValueError(
            f"{flag} is {path}, and {folder} cannot be written to ({error.strerror}): choose another."
        ) from error
