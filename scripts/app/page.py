"""The page: what stands where, and what happens when somebody moves something."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from .comparison import Comparer, OpenImage, shown_overlays, shown_panels
from .curve import KEEP_RATES, agreement_figure, measure_curve, speed_figure
from .downloads import Downloads
from .examples import Example
from .html_tables import (
    comparison_table,
    heading,
    headline,
    measured_row,
    speed_table,
    token_bars,
)
from .legends import stage_legend
from .mcp_tool import segmentation_tool
from .uploads import open_upload, read_upload

STYLE = Path(__file__).with_name("style.css")
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is fetched
_SUFFIXES = [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"]
_INTRODUCTION = """# How much of an image does a segmentation model need?
This model {task}. It cuts an image into small squares, called *tokens*, and computes them layer by layer. Most squares
show nothing of interest. **Pruning** sets those aside on the way, which makes the model faster. What gets lost?

1. Choose an image{or_example}.
2. Move the keep rate: the lower it is, the fewer squares are computed.
3. Compare the results without and with pruning."""
_WAITING = '<p class="r4p-note">The comparison appears here once an image is chosen.</p>'
_PRIVATE = {"api_visibility": "private"}  # programs use the tool of mcp_tool.py


def theme() -> gr.themes.Base:
    """Calm, and of fonts that every machine has."""
    return gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace")
    )


class Page:
    """
    The app of a checkpoint.

    Args:
        comparer ([`Comparer`]): The model.
        examples (`list[Example]`): Images to begin with.
        attribution (`str`): Markdown: which model this is, by whom, trained on what.
        downloads ([`Downloads`]): Where files to be fetched are put.
        speed (`dict`, *optional*): The checkpoint's `speed.json`.
    """

    def __init__(
        self,
        comparer: Comparer,
        examples: list[Example],
        attribution: str,
        downloads: Downloads,
        speed: dict | None = None,
    ):
        self.comparer, self.examples, self.downloads = comparer, examples, downloads
        self.config, self.view = comparer.model.config, comparer.view
        self.attribution, self.speed = attribution, speed

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        with gr.Blocks(title="Reg4Pru: token pruning", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            image = gr.State(None, time_to_live=3600)
            or_example = "; an example is open already" if self.examples else ""
            gr.Markdown(_INTRODUCTION.format(task=self.view.task, or_example=or_example), elem_id="introduction")
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    sources = self._sources()
                    settings = self._settings()
                with gr.Column(scale=2, min_width=320), gr.Tabs():
                    with gr.Tab("See it"):
                        outputs = self._image_outputs()
                    with gr.Tab("Speed and agreement"):
                        self._curve(image, settings)
            gr.Markdown(
                f"{self.view.note}"
                "Images stay on the machine that runs this page, and are deleted within two hours."
                f"\n\n{self.attribution}",
                elem_classes="r4p-note",
            )
            self._connect(blocks, image, sources, settings, outputs)
            gr.api(segmentation_tool(self.comparer), api_name="segment", concurrency_id="model", concurrency_limit=1)
            blocks.unload(self.downloads.forget)
        return blocks

    def _sources(self) -> dict[str, gr.Component]:
        gr.HTML(heading("Your image"))
        file = gr.File(show_label=False, file_types=_SUFFIXES, height=120, elem_id="image")
        if not self.examples:
            return {"file": file}
        gr.HTML(heading("Or an example (drawn by a program)"))
        examples = gr.Gallery(
            [example.image for example in self.examples],
            show_label=False,
            columns=4, height=84, allow_preview=False, object_fit="cover", buttons=[], interactive=False,
            elem_id="examples",
        )  # fmt: skip
        return {"file": file, "examples": examples}

    def _settings(self) -> dict[str, gr.Component]:
        config = self.config
        rate = gr.Slider(
            0.1, 1.0, 0.5, step=0.05, label="Keep rate", buttons=[], elem_id="keep-rate",
            info=f"The share of squares that each of {config.num_stages} stages keeps: at 0.5, half; then half of "
            "those, and so on. 1 is no pruning.",
        )  # fmt: skip
        with gr.Accordion("More settings", open=False):
            by_stage = gr.Checkbox(False, label="A keep rate for each stage")
            rates = [
                gr.Slider(0.1, 1.0, 0.5, step=0.05, label=f"After layer {layer}", visible=False, buttons=[])
                for layer in config.pruning_layers
            ]
            first = config.pruning_layers[-1] + 1 if config.pruning_layers else 0
            layer = gr.Dropdown(
                list(range(first, config.num_hidden_layers)), value=config.reactivation_layer,
                label="Reactivation layer", info="After it the tokens that were set aside are put back.",
            )  # fmt: skip
            pool = gr.Radio(
                [("the survivors", "active"), ("all tokens", "all")], value=config.selection_pool,
                label="Each stage chooses among", info="Among all, a token that was set aside can come back.",
            )  # fmt: skip
            truth = gr.File(label=self.view.truth_label, file_types=_SUFFIXES, height=110, elem_id="truth")
        by_stage.change(
            lambda shown: [gr.update(visible=shown)] * len(rates), by_stage, rates, queue=False, **_PRIVATE
        )
        return {"rate": rate, "by_stage": by_stage, "layer": layer, "pool": pool, "truth": truth, "rates": rates}

    def _image_outputs(self) -> list[gr.Component]:
        figures = gr.HTML("" if self.examples else _WAITING, elem_id="figures")
        gr.HTML(heading(f"{self.view.found}: unpruned on the left, pruned on the right; drag the handle"))
        slider = gr.ImageSlider(
            show_label=False, type="filepath", interactive=False, max_height=640,
            buttons=["fullscreen"], elem_id="comparison",
        )  # fmt: skip
        table = gr.HTML(elem_id="table")
        with gr.Row():
            with gr.Column(min_width=220):
                gr.HTML(heading("Where tokens were pruned"))
                stages = gr.Image(show_label=False, format="png", buttons=[], elem_id="stages")
                gr.HTML(stage_legend(self.config.num_stages))
            with gr.Column(min_width=220):
                gr.HTML(heading("What pruning changed"))
                differences = gr.Image(show_label=False, format="png", buttons=[], elem_id="differences")
                gr.HTML(self.view.difference_legend)
            with gr.Column(min_width=220):
                gr.HTML(heading(self.view.third))
                third = gr.Image(show_label=False, format="png", buttons=[], elem_id="third")
                gr.HTML(self.view.third_legend)
        tokens = gr.HTML(elem_id="tokens")
        files = gr.File(label=self.view.files_label, file_count="multiple", interactive=False,
                        visible=False, elem_id="files")  # fmt: skip
        return [figures, slider, table, stages, differences, third, tokens, files]

    def _curve(self, image: gr.State, settings: dict) -> None:
        if self.speed is not None:
            gr.HTML(heading("What was measured of this checkpoint, for a budget of time") + speed_table(self.speed))
        gr.Markdown(
            f"The same image at {len(KEEP_RATES)} keep rates, each the median of three runs: how much faster, "
            f"and how close to {self.view.unpruned}. It takes some seconds."
        )
        start = gr.Button("Measure this image", variant="primary", elem_id="measure")
        with gr.Row():  # one below the other on a phone
            plots = [
                gr.Image(
                    show_label=False, format="png", buttons=["fullscreen"], elem_id=name, visible=False, min_width=300
                )
                for name in ("speed-curve", "agreement-curve")
            ]
        table = gr.HTML(elem_id="curve-table")
        files = gr.File(label="Table as CSV", interactive=False, visible=False, elem_id="curve-file")

        def measure(opened: OpenImage | None, layer: int, pool: str, request: gr.Request, progress=gr.Progress()):
            if opened is None:
                raise gr.Error("Choose an image first.", print_exception=False)
            rows = measure_curve(self.comparer, opened, layer, pool, progress)
            named = {f"keep rate {row['keep_rate']}": row for row in rows}
            path = self.downloads.write_table(request.session_hash, rows, "curve.csv")
            return (
                gr.update(value=speed_figure(rows), visible=True),
                gr.update(value=agreement_figure(rows, self.view.scores), visible=True),
                comparison_table(named, self.view),
                gr.update(value=path, visible=True),
            )

        start.click(
            measure, [image, settings["layer"], settings["pool"]], [*plots, table, files],
            concurrency_id="model", concurrency_limit=1, **_PRIVATE,
        )  # fmt: skip

    def _connect(self, blocks: gr.Blocks, image: gr.State, sources: dict, settings: dict, outputs: list) -> None:
        rates = settings["rates"]
        controls = [settings[name] for name in ("rate", "by_stage", "layer", "pool", "truth")] + rates
        model = {"concurrency_id": "model", "concurrency_limit": 1, **_PRIVATE}

        def from_file(path: str | None, progress=gr.Progress()):
            if path is None:
                return None
            progress(0.2, desc="Reading")
            with readable_errors():
                image = open_upload(read_upload(path))
                progress(0.4, desc="Predicting without pruning, once")
                return self.comparer.open(Path(path).stem, image)

        def open_example(index: int, progress: gr.Progress):
            example = self.examples[index]
            progress(0.4, desc="Predicting without pruning, once")
            return self.comparer.open(example.name, example.image, example.mask), None

        def first_example(opened: OpenImage | None, progress=gr.Progress()):
            # Whoever is quick has chosen an image by then.
            return (gr.skip(), gr.skip()) if opened else open_example(0, progress)

        def from_example(event: gr.SelectData, progress=gr.Progress()):
            return open_example(event.index, progress)

        opened = [sources["file"].change(from_file, sources["file"], image, show_progress_on=outputs[1], **model)]
        if self.examples:
            chosen = [image, settings["truth"]]
            opened += [
                blocks.load(first_example, image, chosen, show_progress_on=outputs[1], **model),
                sources["examples"].select(from_example, None, chosen, show_progress_on=outputs[1], **model),
            ]
        for event in opened:
            event.success(self._compare, [image, *controls], outputs, show_progress="hidden", **model)
        moved = [settings[name] for name in ("rate", "layer", "pool", "by_stage", "truth")] + rates
        gr.on(
            [control.change for control in moved], self._compare, [image, *controls], outputs,
            trigger_mode="always_last", show_progress="minimal", show_progress_on=outputs[0], **model,
        )  # fmt: skip

    def _compare(
        self, request: gr.Request, opened: OpenImage | None, rate: float, by_stage: bool, layer: int, pool: str,
        truth: str | None, *rates: float,
    ) -> Iterator[list]:  # fmt: skip
        if opened is None:
            yield [gr.skip()] * 8
            return
        keep_rates = list(rates) if by_stage else [rate] * self.config.num_stages
        with readable_errors():
            if truth is not None:
                opened.truth = self.view.open_truth(read_upload(truth), opened.pixels.shape[:2])
                opened.dense_row = None
            pruned = self.comparer.predict(opened.pixels, keep_rates, layer, pool)
        row = measured_row(opened, pruned, keep_rates)
        if opened.dense_row is None:
            opened.dense_row = measured_row(opened, opened.dense, [1.0] * self.config.num_stages)
        # What answers the slider goes first; the rest follows while somebody looks at it.
        answer = [
            headline(row, self.view),
            self.downloads.write_images(request.session_hash, shown_overlays(opened, pruned)),
            comparison_table({"unpruned": opened.dense_row, f"keep rate {row['keep_rate']}": row}, self.view),
        ]
        yield [*answer, *[gr.skip()] * 5]
        panels = shown_panels(opened, pruned, self.config.num_stages)
        files = self.downloads.write(request.session_hash, opened, pruned, [opened.dense_row, row])
        yield [
            *[gr.skip()] * 3,
            panels["stages"],
            panels["differences"],
            panels["third"],
            token_bars(opened.dense, pruned, self.config.pruning_layers, layer),
            gr.update(value=files, visible=True),
        ]


class readable_errors:
    """What a visitor did wrong is said on the page; anything else is a fault of ours, and says no more than that."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise gr.Error(str(error), title="That did not work", print_exception=False) from error
