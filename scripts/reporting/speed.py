"""What `reg4pru tune` measured, as table, sentence and figure: `speed.json` for readers."""

from pathlib import Path

import numpy as np

from modeling_reg4pru.speed_budget import accuracy

from ..common.keep_rates import rate_name
from .style import DPI, new_figure, tidy
from .tables import format_number, markdown_table

# Field of a row of [`front_rows`] → its heading.
FRONT_HEADINGS = {
    "milliseconds": "ms per image",
    "ratio": "× unpruned",
    "keep_rates": "keep rate per stage",
    "reactivation_layer": "reactivation after layer",
    "selection_pool": "pool",
    "allocation": "allocation",
    "tiles": "tiles",
    "engine": "engine",
}
# The same of qualities: a checkpoint of two classes has the first three, one of more the others.
QUALITY_HEADINGS = {
    "average_precision": "AP",
    "dice": "Dice",
    "cldice": "clDice",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou": "boundary IoU",
}


def rates_name(keep_rates: list[float]) -> str:
    """`"0.7"`, or `"0.85 / 0.7 / 0.3"` where the stages differ."""
    names = [rate_name(rate) for rate in keep_rates]
    return names[0] if len(set(names)) == 1 else " / ".join(names)


def front_headings(speed: dict) -> dict[str, str]:
    """The columns of [`front_rows`], and their headings: early measurements tell nothing of tiles and engines."""
    measured = speed["candidates"][0]
    return {name: heading for name, heading in (FRONT_HEADINGS | QUALITY_HEADINGS).items() if name in measured}


def front_rows(speed: dict) -> list[dict[str, str]]:
    """The Pareto front of a `speed.json`, the most accurate setting first, each value as it is shown."""
    shown = {
        "milliseconds": format_milliseconds,
        "ratio": lambda ratio: f"{ratio:.2f}×",
        "keep_rates": rates_name,
        "reactivation_layer": lambda layer: f"L−{speed['num_layers'] - layer}",
        **dict.fromkeys(("selection_pool", "allocation", "tiles", "engine"), str),
    }
    front = [row for row in speed["candidates"] if row["on_front"]]
    return [
        {name: shown.get(name, format_number)(row[name]) for name in front_headings(speed)}
        for row in sorted(front, key=lambda row: -row["milliseconds"])
    ]


def format_milliseconds(milliseconds: float) -> str:
    """With three digits, or without a fraction."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def front_table(speed: dict) -> str:
    """The Pareto front as a Markdown table."""
    return markdown_table([[*front_headings(speed).values()], *([*row.values()] for row in front_rows(speed))])


def measured_sentence(speed: dict) -> str:
    """Where, on what and when it was measured."""
    machine, (height, width) = speed["machine"], speed["image_size"]
    count, data = speed["data"]["images"]["validation"], speed["settings"]["dataset"]
    data = Path(data).name if Path(data).is_absolute() or data.startswith(".") else data
    quality = f"Quality is that of {count} validation images"
    if "quality" in speed:  # from the report of `reg4pru prune`
        quality = f"Quality is {speed['quality']} on {count} images"
    tiles = f"{speed['tiles_per_image']:.3g} tiles"
    if len({row.get("tiles") for row in speed["candidates"]}) > 1:
        tiles = "tiles"
    frame = "an image" if speed["frame_size"] is None else "an image of {} × {} pixels".format(*speed["frame_size"])
    return (
        f"Measured on {speed['provenance']['date'][:10]} on {_machine_name(machine)}, for {frame} in "
        f"{tiles} of {height} × {width} pixels, batch size {speed['batch_size']}. "
        f"{quality} ({data}). Of {len(speed['candidates'])} settings, none is both faster and more accurate than "
        "these."
    )


def _machine_name(machine: dict) -> str:
    count = machine["num_threads"]
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    return f"{machine['device']}{threads}, {machine['dtype']}"


def draw_front(speed: dict, path: Path) -> None:
    """AP, or mean IoU, against time: all settings, the checkpoint's own at every rate, and the Pareto front."""
    rows, checkpoint = speed["candidates"], speed["checkpoint"]
    own = tuple(checkpoint[name] for name in ("reactivation_layer", "selection_pool", "allocation"))
    cut, dtype = checkpoint.get("tile_overlap"), speed["machine"]["dtype"]

    def points(chosen: list[dict]) -> tuple[np.ndarray, np.ndarray]:
        chosen = sorted(chosen, key=lambda row: row["milliseconds"])
        return np.array([(row["milliseconds"], accuracy(row)) for row in chosen]).T

    uniform = [
        row
        for row in rows
        if len(set(row["keep_rates"])) == 1
        and (row.get("tile_overlap", cut), row.get("engine", dtype)) == (cut, dtype)
        and (row["keep_rates"][0] == 1 or (row["reactivation_layer"], row["selection_pool"], row["allocation"]) == own)
    ]
    figure = new_figure(7.2, 4.6)
    axis = figure.subplots()
    axis.plot(*points(rows), "o", color="0.75", markersize=4, label="measured")
    axis.plot(*points(uniform), "s--", color="#D55E00", label="as the checkpoint is configured")
    front = points([row for row in rows if row["on_front"]])
    axis.plot(*front, "o-", drawstyle="steps-post", color="#0072B2", label="Pareto front")
    measured = "mean IoU" if "mean_iou" in rows[0] else "average precision"
    axis.set(xlabel="milliseconds per image", ylabel=f"{measured}, validation images")
    axis.set_title(_machine_name(speed["machine"]), fontsize=9)
    tidy(axis)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
