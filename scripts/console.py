"""What every command says on the terminal."""

import logging


def set_up_logging(level: int = logging.INFO) -> None:
    """Our messages as plain lines; of the HTTP client, which tells of every request, warnings only."""
    logging.basicConfig(level=level, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
