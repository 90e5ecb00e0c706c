"""From a loaded checkpoint to a served page, with the limits that keep one visitor from taking everything."""

import json
from pathlib import Path

from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.speed_budget import SPEED_FILE, per_image

from ..common.former_names import with_present_names
from ..inference.model_classes import is_of_vessels
from .attribution import attribution
from .comparison import Comparer
from .downloads import Downloads
from .examples import draw_examples
from .page import STYLE, Page, theme
from .uploads import MAX_MEGABYTES

_QUEUE = 20  # visitors who wait; more are told that the page is busy
_SESSIONS = 50


def serve(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    checkpoint: Path,
    scratch: Path,
    server_name: str | None = None,
    server_port: int | None = None,
    mcp_server: bool = False,
) -> None:
    """
    Serve the page until it is interrupted.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]), processor ([`Reg4PruImageProcessor`]): The checkpoint.
        checkpoint (`Path`): Its folder, for its card.
        scratch (`Path`): For temporary files.
        server_name (`str`, *optional*), server_port (`int`, *optional*): Where to listen; by default gradio's choice.
        mcp_server (`bool`, *optional*, defaults to `False`): Whether to offer the tool to agents, too.
    """
    comparer, drawn = Comparer(model, processor), draw_examples()
    comparer.open(drawn[0].name, drawn[0].image)  # the first run of a process is slower than those that count
    examples = drawn if is_of_vessels(model.config) else []
    measured = checkpoint / SPEED_FILE
    speed = None
    if measured.exists():
        speed = per_image(with_present_names(json.loads(measured.read_text(encoding="utf-8"))))
    page = Page(comparer, examples, attribution(checkpoint), Downloads(scratch / "downloads"), speed).build()
    page.queue(max_size=_QUEUE, default_concurrency_limit=2)
    page.launch(
        server_name=server_name,
        server_port=server_port,
        mcp_server=mcp_server,
        allowed_paths=[str(scratch / "downloads")],
        max_file_size=f"{MAX_MEGABYTES}mb",
        state_session_capacity=_SESSIONS,
        show_error=False,
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css_paths=STYLE,
    )
