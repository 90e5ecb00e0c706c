"""What `reg4pru tune` shows of its measurements: the table of the front, and its picture."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..common.keep_rates import rate_name


def rates_name(keep_rates: list[float]) -> str:
    """`"0.7"`, or `"0.85 / 0.7 / 0.3"` where the stages differ."""
    names = [rate_name(rate) for rate in keep_rates]
    return names[0] if len(set(names)) == 1 else " / ".join(names)


def front_rows(speed: dict) -> list[dict[str, str]]:
    """The front of a `speed.json`, the most accurate first, each value as it is shown."""
    front = [row for row in speed["candidates"] if row["on_front"]]
    return [
        {
            "milliseconds": f"{row['milliseconds']:.3g}",
            "ratio": f"{row['ratio']:.2f}×",
            "keep_rates": rates_name(row["keep_rates"]),
            "reactivation_layer": f"L−{speed['num_layers'] - row['reactivation_layer']}",
            "selection_pool": row["selection_pool"],
            **{name: _score(row[name]) for name in ("average_precision", "dice", "cldice")},
        }
        for row in sorted(front, key=lambda row: -row["milliseconds"])
    ]


def front_table(speed: dict) -> str:
    """The front as Markdown."""
    lines = [
        "| ms an image | × unpruned | keep rates by stage | reactivated after | pool | AP | Dice | clDice |",
        "|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row.values()) + " |" for row in front_rows(speed)),
    ]
    return f"{measured_sentence(speed)}\n\n" + "\n".join(lines)


def measured_sentence(speed: dict) -> str:
    """On what the numbers were measured."""
    machine, (height, width) = speed["machine"], speed["image_size"]
    threads = f", {machine['num_threads']} threads" if machine["num_threads"] else ""
    count = speed["data"]["images"]["validation"]
    return (
        f"Measured on {speed['provenance']['date'][:10]} on {machine['device']}{threads}, {machine['dtype']}, images "
        f"of {height} × {width} pixels, batch {speed['batch_size']}; an image takes "
        f"{speed['tiles_per_image']:.3g} of them. Quality is that of {count} validation images. Of "
        f"{len(speed['candidates'])} settings that were measured none is both faster and more accurate than these."
    )


def draw_front(speed: dict, path: Path) -> None:
    """Average precision against time: what was measured, the uniform rates of the checkpoint, and the front."""
    rows, checkpoint = speed["candidates"], speed["checkpoint"]
    place = (checkpoint["reactivation_layer"], checkpoint["selection_pool"])

    def points(chosen: list[dict]) -> tuple[np.ndarray, np.ndarray]:
        chosen = sorted(chosen, key=lambda row: row["milliseconds"])
        return np.array([(row["milliseconds"], row["average_precision"]) for row in chosen]).T

    uniform = [
        row
        for row in rows
        if len(set(row["keep_rates"])) == 1
        and (row["keep_rates"][0] == 1 or (row["reactivation_layer"], row["selection_pool"]) == place)
    ]
    figure = Figure(figsize=(7.2, 4.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(*points(rows), "o", color="0.75", markersize=4, label="measured")
    axis.plot(*points(uniform), "s--", color="#D55E00", label="one rate for all stages, as the checkpoint is set")
    front = points([row for row in rows if row["on_front"]])
    axis.plot(*front, "o-", drawstyle="steps-post", color="#0072B2", label="front")
    axis.set(xlabel="milliseconds an image", ylabel="average precision, validation images")
    threads = speed["machine"]["num_threads"]
    title = f"{speed['machine']['device']}{f', {threads} threads' if threads else ''}, {speed['machine']['dtype']}"
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
