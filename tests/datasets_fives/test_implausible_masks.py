"""Masks as people save them: what is read are the vessels that were drawn, or the file is refused by its name."""

import logging
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_fives import load_vessels
from datasets_fives.features import Record
from datasets_fives.loading import checked_rows
from datasets_fives.masks import binary_mask, check_share, read_mask
from modeling_reg4pru.label_maps import read_label_map

SIDE = 48


def draw_lines(seed: int, width: int = 1) -> np.ndarray:
    """Two arteries, 1, and two veins, 2, that run from left to right."""
    rng = np.random.default_rng(seed)
    lines, columns = np.zeros((SIDE, SIDE), np.uint8), np.arange(SIDE)
    for row, label in ((6, 1), (16, 2), (27, 1), (38, 2)):
        rows = (row + 3 * np.sin(columns / rng.uniform(6, 12) + rng.uniform(0, 6))).astype(int)
        for offset in range(width):
            lines[rows + offset, columns] = label
    return lines


def layered(mask: np.ndarray, stroke: tuple[int, ...], ground: tuple[int, ...], opacity: int = 255) -> Image.Image:
    """Strokes of a colour over a ground that cannot be seen."""
    colours = np.where(mask[..., None], np.array(stroke), np.array(ground))
    return Image.fromarray(np.dstack([colours, mask * opacity]).astype(np.uint8))


def indexed(mask: np.ndarray, *palette: int, transparency: int | None = None) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette(palette)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)
# How a drawing is saved, and whether its vessels can be understood; if not, it must be refused.
UNDERSTOOD = {
    "white": lambda lines: grey((lines > 0) * 255),
    "white, 16 bits": lambda lines: Image.fromarray((lines > 0).astype(np.uint16) * 65535),
    "labels": lambda lines: grey(lines > 0),
    "black on transparent black": lambda lines: layered(lines > 0, BLACK, BLACK),
    "white on transparent white": lambda lines: layered(lines > 0, WHITE, WHITE),
    "white on transparent black": lambda lines: layered(lines > 0, WHITE, BLACK),
    "red on transparent red": lambda lines: layered(lines > 0, RED, RED),
    "grey with alpha": lambda lines: layered(lines > 0, (0,), (0,)),
    "palette of black and white": lambda lines: indexed(lines > 0, *BLACK, *WHITE),
    "palette of colours": lambda lines: indexed(lines > 0, *BLACK, 128, 0, 0),
    "palette of colours, transparent": lambda lines: indexed(lines > 0, *BLACK, 128, 0, 0, transparency=0),
    "palette of white, transparent": lambda lines: indexed(lines > 0, *WHITE, *WHITE, transparency=0),
}
REFUSED = {
    "black on transparent white": lambda lines: layered(lines > 0, BLACK, WHITE),
    "faint on transparent white": lambda lines: layered(lines > 0, WHITE, WHITE, opacity=100),
    "faint on transparent black": lambda lines: layered(lines > 0, WHITE, BLACK, opacity=100),
    "red on transparent black": lambda lines: layered(lines > 0, RED, BLACK),
    "red on black": lambda lines: Image.fromarray((lines > 0)[..., None] * np.array(RED, np.uint8)),
    "red and blue": lambda lines: Image.fromarray(np.array([BLACK, BLUE, RED], np.uint8)[lines]),
    "inverted": lambda lines: grey((lines == 0) * 255),
    "inverted labels": lambda lines: grey(lines == 0),
    "inverted palette": lambda lines: indexed(lines > 0, *WHITE, *BLACK),
    "all white": lambda lines: grey(np.full(lines.shape, 255)),
    "artery 100, vein 255": lambda lines: grey(np.array([0, 100, 255])[lines]),
    "artery 30, vein 255, some 150": lambda lines: grey(np.where(lines == 2, 255, np.where(lines, 30, 0))
                                                        - 105 * (np.indices(lines.shape)[1] < 2) * (lines == 2)),
    "artery 85, vein 170": lambda lines: grey(np.array([0, 85, 170])[lines]),
    "artery 1, vein 2": lambda lines: grey(lines),
    "vessels of 100": lambda lines: grey((lines > 0) * 100),
    "fractions": lambda lines: Image.fromarray((lines > 0).astype(np.float32) / 2),
}  # fmt: skip
# Of these the model's image processor, which segments anything, cannot know that they are wrong.
ANY_SHARE = {"inverted", "inverted labels", "inverted palette", "all white"}


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "TIFF" if image.mode == "F" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_vessels_are_understood_however_they_are_saved(kind, width):
    lines = draw_lines(0, width)
    content = encoded(UNDERSTOOD[kind](lines))
    np.testing.assert_array_equal(read_mask(content), lines > 0)
    np.testing.assert_array_equal(read_label_map(Image.open(BytesIO(content)), num_labels=2), lines > 0)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_mean_anything_is_refused(kind, width):
    content = encoded(REFUSED[kind](draw_lines(0, width)))
    with pytest.raises(ValueError, match="mask is"):
        read_mask(content)
    if kind not in ANY_SHARE:
        with pytest.raises(ValueError, match="A mask has"):
            read_label_map(Image.open(BytesIO(content)), num_labels=2)


def test_a_transparent_layer_says_nothing_of_more_than_two_classes():
    with pytest.raises(ValueError, match="transparent parts"):
        read_label_map(layered(draw_lines(0) > 0, BLACK, BLACK), num_labels=3)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from([*UNDERSTOOD, *REFUSED]), st.integers(1, 3)), min_size=1, max_size=4))
def test_a_data_set_of_any_masks_holds_the_vessels_or_names_the_files(kinds):
    drawings = {f"scan_{index}": draw_lines(index, width) for index, (_, width) in enumerate(kinds)}
    image = encoded(Image.new("RGB", (SIDE, SIDE)))
    contents = [
        Record(name, "", "unknown", image, encoded((UNDERSTOOD | REFUSED)[kind](lines)))
        for (name, lines), (kind, _) in zip(drawings.items(), kinds, strict=True)
    ]
    wrong = [name for name, (kind, _) in zip(drawings, kinds, strict=True) if kind in REFUSED]
    rows, said = {}, ""
    try:
        rows.update((row["name"], row["mask"]["bytes"]) for row in checked_rows(contents))
    except ValueError as error:
        said = str(error)
    assert [name for name in drawings if f"{name}: mask is" in said] == wrong
    if not wrong:
        for name, lines in drawings.items():
            np.testing.assert_array_equal(Image.open(BytesIO(rows[name])), lines > 0)


def write_set(folder, masks: list[Image.Image]) -> None:
    for index, mask in enumerate(masks):
        for kind, image in (("images", Image.new("RGB", (SIDE, SIDE), (index, 90, 40))), ("masks", mask)):
            (folder / kind).mkdir(exist_ok=True)
            image.save(folder / kind / f"{index}{'_manual' if kind == 'masks' else ''}.png")


def load(folder, **kwargs):
    return load_vessels(folder, split="resplit", cache_dir=folder / "cache", **kwargs)


def test_masks_must_agree_about_255(tmp_path):
    ignored = draw_lines(0) > 0
    label_map = ignored.astype(np.uint8)
    label_map[:3] = 255
    write_set(tmp_path, [grey((draw_lines(seed) > 0) * 255) for seed in range(4)] + [grey(label_map)])
    with pytest.raises(ValueError, match=r"vessel in 4 masks \(0, 1, 2, 3\) and ignored .* 1 \(4\).*vessel_labels"):
        load(tmp_path)
    assert sum(map(len, load(tmp_path, vessel_labels=[1]).values())) == 5


def test_inverted_masks_are_named_and_can_be_vouched_for(tmp_path):
    masks = [grey((draw_lines(seed) > 0) * 255) for seed in range(4)]
    write_set(tmp_path, [*masks, grey((draw_lines(9) == 0) * 255)])
    with pytest.raises(ValueError, match=r"1 problem .* 4 \(mask 4_manual.png\): mask is 9\d% vessel: .*inverted"):
        load(tmp_path)
    assert sum(map(len, load(tmp_path, vessel_labels=[255]).values())) == 5


def test_masks_without_vessels_are_counted(tmp_path, caplog):
    write_set(tmp_path, [*(grey((draw_lines(seed) > 0) * 255) for seed in range(4)), grey(np.zeros((SIDE, SIDE)))])
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "1 of 5 masks show no vessel: 4" in caplog.text


def test_the_share_is_of_the_pixels_that_count():
    mask = np.zeros((10, 10), np.uint8)
    mask[:6] = 1
    check_share(mask)
    mask[9] = 255
    with pytest.raises(ValueError, match="mask is 67% vessel"):
        check_share(mask)
    np.testing.assert_array_equal(binary_mask(Image.fromarray(mask)), mask)  # fields of view are larger
