"""
Show in a browser what token pruning does to an image.

Unless --server_name says otherwise, the page can be reached from this machine only. It loads nothing from elsewhere,
and its files are in a temporary folder that is removed at the end. Needs `pip install "reg4pru[app]"`.

Example:
    reg4pru app                                  # the checkpoint that `make demo` trained last
    reg4pru app --model user/name --mcp_server   # one from the Hub, also as a tool for agents
"""

import importlib.util
import logging
import os
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ..common.cli import CommandParser, set_up_logging

logger = logging.getLogger(__name__)

# What `make demo` writes: with DATA those of FIVES, and those from scratch where it found no pretrained weights.
_STUDIES = ("demo", "demo_scratch", "demo_fives", "demo_fives_scratch")
DEMOS = [Path("outputs", study, "runs/reg4pru/seed-0/training/last") for study in _STUDIES]


@dataclass
class AppArguments:
    """Which model is shown, and where."""

    _argument_group_name = "app"

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint: a folder or a Hub id; default: the one that `make demo` trained last."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    server_name: str | None = field(default=None, metadata={"help": "Address to listen on; default: 127.0.0.1."})
    server_port: int | None = field(
        default=None, metadata={"help": "Port to listen on; default: the first free one from 7860."}
    )
    mcp_server: bool = field(default=False, metadata={"help": "Also offer segmentation as an MCP tool."})


def find_model(model: str | None) -> str:
    """
    The checkpoint to show: the one that is named, else the newest of the demo's.

    Raises:
        `ValueError`: If none is named and the demo has trained none.
    """
    if model is not None:
        return model
    trained = [path for demo in DEMOS if (path := demo / "config.json").is_file()]
    if not trained:
        raise ValueError(
            f"There is no checkpoint at {DEMOS[0]}: `make demo` trains one in ten minutes; or name another with "
            "--model."
        )
    return str(max(trained, key=lambda path: path.stat().st_mtime_ns).parent)


def main(argv: list[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = CommandParser(AppArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    if importlib.util.find_spec("gradio") is None:
        parser.error('The app needs gradio: pip install "reg4pru[app]".')
    from ..hub.transfer import TransferError, fetch_checkpoint
    from ..inference.loading import load_checkpoint

    try:
        folder = fetch_checkpoint(find_model(arguments.model), arguments.model_revision)
        model, processor = load_checkpoint(folder, device=arguments.device)
    except (ValueError, TransferError) as error:
        parser.error(str(error))

    # Services and containers are stopped by SIGTERM: then, too, the temporary files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="reg4pru-app-") as scratch:
        # Both are read when gradio is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(Path(scratch) / "gradio")
        from .serving import serve

        where = (arguments.server_name, arguments.server_port, arguments.mcp_server)
        try:
            serve(model, processor, Path(folder), Path(scratch), *where)
        except OSError as error:  # a port in use
            parser.error(f"The page cannot be served at --server_name {where[0]}, --server_port {where[1]}: {error}")


if __name__ == "__main__":
    main()
