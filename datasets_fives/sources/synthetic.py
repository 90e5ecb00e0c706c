"""
Procedural fundus-like images with their vessel masks: something to learn from before any data is at hand.

Everything is drawn in units of the image's side, so the same seed gives the same eye at any size: a disc from
which arteries and veins leave, arch around the macula and branch; uneven light, a pale or dark fundus, the lesions of
the condition, and the blur and noise of a camera. The lesions and the choroid are what a vessel detector must not
mistake for vessels.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ..features import CONDITIONS, Listing, Record
from ..images import fingerprint
from ..splits import SPLITS

# Fraction of the side that the circular field of view reaches from the centre, measured on FIVES.
FIELD_RADIUS = 0.49
# Narrowest vessel of the reference annotation, about 12 pixels of 2048.
MIN_WIDTH = 0.0042
# Of the drawing, as part of fingerprints: raise it when other images come out.
_VERSION = 3


class Eye(NamedTuple):
    """Where the landmarks are, in units of the image's side."""

    disc: np.ndarray  # (2,) x, y
    macula: np.ndarray  # (2,)
    disc_radius: float
    temporal: int  # +1: the macula is to the right of the disc


class Vessel(NamedTuple):
    """A centre line with the width at each of its points; `depth` counts the branchings above it."""

    points: np.ndarray  # (n, 2)
    widths: np.ndarray  # (n,)
    artery: bool
    depth: int


class SyntheticRecords(Sequence[Record]):
    """
    Synthetic images as records, drawn when they are read.

    Args:
        records (`Sequence[Record]`): The images, in order, without their content.
        size (`int`): Side of the images in pixels.
        seed (`int`): Image `i` depends only on `(seed, i)` and the size.
    """

    def __init__(self, records: Sequence[Record], size: int, seed: int):
        self.records, self.size, self.seed = tuple(records), size, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        drawn = draw_image(self.size, record.condition, np.random.SeedSequence((self.seed, index)))
        image, mask = map(Image.fromarray, drawn)
        return record._replace(image=image, mask=mask)


def list_synthetic(counts: tuple[int, int, int], size: int, seed: int) -> Listing:
    """
    List synthetic images; the conditions take turns.

    Args:
        counts (`tuple[int, int, int]`): How many train, validate and test.
        size (`int`): Side of the images in pixels.
        seed (`int`): Seed of the images.

    Raises:
        ValueError: If none trains, or a count is negative.
    """
    if len(counts) != 3 or min(counts) < 0 or counts[0] < 1:
        raise ValueError(f"synthetic_counts are how many images train (at least 1), validate and test, got {counts}.")
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    records = []
    for index, (split, condition) in enumerate(zip(splits, cycle(CONDITIONS), strict=False)):
        # The same eye at any size is the same image.
        image_hash = fingerprint(f"synthetic {_VERSION} {seed} {index}".encode())
        records.append(Record(f"synthetic/{index + 1}_{condition}", split, condition, image_hash=image_hash))
    return Listing(records, SyntheticRecords(records, size, seed), list(CONDITIONS))


def draw_image(size: int, condition: str, seed: np.random.SeedSequence) -> tuple[np.ndarray, np.ndarray]:
    """
    Draw one image and its vessel mask.

    Args:
        size (`int`): Side in pixels.
        condition (`str`): `"A"`, `"D"`, `"G"` or `"N"`, which lesions to draw.
        seed (`np.random.SeedSequence`): Seed of this image.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The image (size, size, 3) `uint8` and the mask (size, size) `uint8` in
        {0, 1}.
    """
    # One stream for each part, so that the number of draws of one part cannot change another.
    anatomy, tissue, lesions, camera = (np.random.default_rng(child) for child in seed.spawn(4))
    eye = _place_eye(anatomy)
    vessels = _grow_vessels(eye, anatomy)
    grid = ((np.mgrid[:size, :size][::-1] + 0.5) / size).astype(np.float32)  # x, y of each pixel
    field = _field_of_view(grid, size, camera)

    image = _fundus(grid, eye, tissue)
    image = _draw_disc(image, grid, eye, condition, tissue)
    image = _draw_lesions(image, grid, eye, condition, lesions)
    image, mask = _draw_vessels(image, vessels, size, tissue)
    image = _light(image, grid, camera)
    image = _camera(image, field, size, camera)
    return image, mask * (field > 0.5)


def _place_eye(rng: np.random.Generator) -> Eye:
    temporal = int(rng.choice((-1, 1)))
    disc = np.array([0.5 - temporal * rng.uniform(0.19, 0.28), rng.uniform(0.42, 0.53)])
    macula = disc + np.array([temporal * rng.uniform(0.24, 0.29), rng.uniform(0.01, 0.05)])
    return Eye(disc, macula, rng.uniform(0.07, 0.085), temporal)


def _grow_vessels(eye: Eye, rng: np.random.Generator) -> list[Vessel]:
    """Grow four arcades (each an artery beside a vein), some small vessels at the disc, and all their branches."""
    vessels: list[Vessel] = []
    for up in (-1, 1):
        outside = bool(rng.random() < 0.5)
        for artery in (False, True):
            width = rng.uniform(0.0125, 0.0170) * (0.75 if artery else 1.0)
            # The arcade leaves steeply and bends over the macula; the vein runs outside or inside of the artery.
            start = up * (rng.uniform(1.2, 1.4) + (0.25 if artery == outside else 0.0))
            end = up * (rng.uniform(-0.45, -0.1) + (0.2 if artery == outside else 0.0))
            _grow(vessels, eye, _leave(eye, rng), start, end, width, rng.uniform(0.75, 0.95), artery, 0, rng)
            # Towards the nose the vessels are nearly straight.
            start = np.pi - up * rng.uniform(0.4, 1.2)
            end = start + up * rng.uniform(-0.1, 0.5)
            length = rng.uniform(0.35, 0.6)
            _grow(vessels, eye, _leave(eye, rng), start, end, width * 0.65, length, artery, 1, rng)
    for _ in range(rng.integers(3, 7)):
        start, artery = rng.uniform(-np.pi, np.pi), bool(rng.random() < 0.5)
        width, length = rng.uniform(0.0045, 0.0075), rng.uniform(0.1, 0.3)
        _grow(vessels, eye, _leave(eye, rng), start, start, width, length, artery, 2, rng)
    return vessels


def _leave(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Where a vessel comes out of the disc: near its middle, a little towards the nose."""
    return eye.disc + eye.disc_radius * (rng.normal(0, (0.12, 0.22)) - (0.2 * eye.temporal, 0))


def _grow(vessels, eye, origin, start, end, width, length, artery, depth, rng) -> None:
    """
    Grow one vessel from `origin` and, recursively, its branches.

    Headings are angles with 0 towards the macula's side; they go from `start` to `end` along the vessel and wander.
    """
    step = 0.006
    count = max(4, int(length / step))
    along = np.linspace(0, 1, count)
    wander = ndimage.gaussian_filter1d(np.cumsum(rng.normal(0, 0.05, count)), 2, mode="nearest")
    wave = rng.uniform(0.05, 0.3) * np.sin(2 * np.pi * along * length / rng.uniform(0.05, 0.16) + rng.uniform(0, 6))
    headings = start + (end - start) * along**0.6 + wander - wander[0] + wave * np.minimum(1, 3 * along)
    steps = step * np.stack([np.cos(headings) * eye.temporal, np.sin(headings)], axis=1)
    points = origin + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)[:-1]])
    # A vessel ends where it leaves the image or comes to the fovea, which has no vessels.
    stop = (np.linalg.norm(points - 0.5, axis=1) > FIELD_RADIUS + 0.02) | (
        np.linalg.norm(points - eye.macula, axis=1) < 0.045
    )
    if stop.any():
        count = int(stop.argmax())
        points, headings = points[:count], headings[:count]
    if count < 4:
        return

    widths = np.empty(count)
    branches = []
    # The first stretch of a vessel, and all of the disc, is free of branches.
    travelled, side, gap = 0.0, int(rng.choice((-1, 1))), rng.uniform(0.05, 0.13)
    for i in range(count):
        travelled += step
        widths[i] = width
        width *= 0.9965
        if travelled > gap and width > 1.2 * MIN_WIDTH and depth < 5:
            share = rng.uniform(0.45, 0.8)
            branches.append((points[i], headings[i] + side * rng.uniform(0.4, 0.95), side, width * share))
            # Murray's law: the cubes of the widths add up.
            width *= (1 - 0.6 * share**3) ** (1 / 3)
            travelled, side = 0.0, -side if rng.random() < 0.7 else side
            gap = rng.uniform(0.06, 0.18)
    vessels.append(Vessel(points, np.maximum(widths, MIN_WIDTH), artery, depth))
    for origin, heading, turn, branch_width in branches:
        length = rng.uniform(0.08, 0.32) * (branch_width / 0.008) ** 0.5
        end = heading - turn * rng.uniform(-0.3, 0.8)
        _grow(vessels, eye, origin, heading, end, branch_width, length, artery, depth + 1, rng)


def _draw_vessels(image, vessels, size, rng):
    """Darken the image where vessels run, and return it with the mask of the same vessels."""
    fine = size * (4 if size <= 256 else 2 if size <= 1024 else 1)
    layers = [Image.new("L", (fine, fine)) for _ in range(4)]
    vein, artery, reflex, mask = (ImageDraw.Draw(layer) for layer in layers)
    for vessel in sorted(vessels, key=lambda v: v.widths[0]):
        along = np.gradient(vessel.points, axis=0)
        across = (along / np.linalg.norm(along, axis=1, keepdims=True))[:, ::-1] * (-0.5, 0.5)

        def outline(widths, points=vessel.points, across=across):
            half = across * np.maximum(widths - 1 / fine, 0.5 / fine)[:, None]  # pillow draws the border as well
            sides = points + half, (points - half)[::-1]
            return (np.concatenate(sides) * fine).ravel().tolist()

        # Thin vessels hold less blood: they are paler, not only narrower.
        strength = int(255 * np.clip(0.5 + 45 * vessel.widths.mean(), 0, 1) * rng.uniform(0.75, 1))
        (artery if vessel.artery else vein).polygon(outline(vessel.widths), fill=strength)
        # A vessel is annotated at least one pixel wide, or it would fall apart in small masks.
        mask.polygon(outline(np.maximum(vessel.widths, 1 / size)), fill=255)
        if vessel.depth < 2:
            reflex.polygon(outline(vessel.widths * 0.3), fill=255)
    # The edge of a vessel is soft in the tissue itself, whatever the camera.
    blood, arterial, shine = (_shrink(layer, size, 0.0009 * size) for layer in layers[:3])
    covered = _shrink(layers[3], size, 0)
    contrast = rng.uniform(0.85, 1.35)
    # What a full vein and a full artery take away of red, green and blue light.
    image = image * (1 - blood[..., None] * _rgb(0.20, 0.42, 0.30, contrast))
    image = image * (1 - arterial[..., None] * _rgb(0.06, 0.34, 0.28, contrast))
    image = image * (1 + shine[..., None] * _rgb(0.1, 0.1, 0.1, rng.uniform(0.3, 1.2)))
    return image, (covered > 0.5).astype(np.uint8)


def _shrink(layer: Image.Image, size: int, sigma: float) -> np.ndarray:
    pixels = np.asarray(layer.resize((size, size), Image.Resampling.BOX), np.float32) / 255
    return ndimage.gaussian_filter(pixels, sigma) if sigma else pixels


def _rgb(red: float, green: float, blue: float, scale: float = 1.0) -> np.ndarray:
    return np.array([red, green, blue], np.float32) * np.float32(scale)


def _smooth_noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of about unit spread whose blobs are 1/`cells` of the side wide."""
    coarse = Image.fromarray(rng.standard_normal((cells + 3, cells + 3), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(1.3)


def _fundus(grid, eye, rng):
    """The back of the eye without vessels: colour, pigment, choroid, macula."""
    size = grid.shape[-1]
    base = _rgb(1.0, rng.uniform(0.44, 0.56), rng.uniform(0.11, 0.2), rng.uniform(0.52, 0.78))
    amounts = ((0.07, 3), (0.045, 8), (0.025, 24), (0.015, 60))
    pigment = sum(np.float32(amount) * _smooth_noise(size, cells, rng) for amount, cells in amounts)
    # Vessels of the choroid: pale, blurred, in some eyes all over the place; nobody annotates them.
    wavy = _smooth_noise(size, 12, rng) + 0.6 * _smooth_noise(size, 26, rng)
    visible = rng.uniform(0.05, 0.16) if rng.random() < 0.35 else rng.uniform(0, 0.05)
    pigment = pigment + np.float32(visible) * (np.exp(-((wavy / 0.55) ** 2)) - 0.4)
    image = base * (1 + pigment[..., None] * _rgb(0.6, 1.1, 1.3))
    distance = np.hypot(grid[0] - eye.macula[0], grid[1] - eye.macula[1])
    dark = rng.uniform(0.12, 0.3) * np.exp(-((distance / rng.uniform(0.07, 0.12)) ** 2))
    return image * (1 - dark[..., None] * _rgb(0.6, 1.0, 1.0))


def _draw_disc(image, grid, eye, condition, rng):
    """The optic disc with its cup, which is large in glaucoma."""
    dx, dy = grid[0] - eye.disc[0], grid[1] - eye.disc[1]
    angle = np.arctan2(dy, dx)
    distance = np.hypot(dx * rng.uniform(1.0, 1.12), dy) / eye.disc_radius
    distance = distance * (1 + 0.03 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.02 * np.sin(3 * angle))
    glow = rng.uniform(0.05, 0.16) * np.exp(-((distance / 2.6) ** 2))
    image = image * (1 + glow[..., None])
    softness = 0.07
    disc = 1 / (1 + np.exp((distance - 1) / softness))[..., None]
    cup_ratio = rng.uniform(0.66, 0.82) if condition == "G" else rng.uniform(0.3, 0.5)
    cup = 1 / (1 + np.exp((distance - cup_ratio) / 0.09))[..., None]
    brightness = rng.uniform(0.85, 1.0)
    rim_colour = _rgb(0.96, 0.56, 0.240, brightness)
    cup_colour = _rgb(1.0, 0.80, 0.42, brightness)
    texture = 1 + 0.05 * _smooth_noise(grid.shape[-1], 40, rng)[..., None]
    target = (rim_colour * (1 - cup) + cup_colour * cup) * texture
    return image * (1 - 0.85 * disc) + target * 0.85 * disc


def _draw_lesions(image, grid, eye, condition, rng):
    """Drusen (A), haemorrhages and exudates (D); nothing for G, whose sign is the cup, and N."""
    pale, dark, yellow = _rgb(0.85, 0.62, 0.28), _rgb(0.32, 0.06, 0.03), _rgb(0.95, 0.82, 0.32)
    if condition == "A":
        for _ in range(rng.integers(25, 90)):
            centre = eye.macula + rng.normal(0, rng.uniform(0.06, 0.16), 2)
            _blob(image, grid, centre, rng.uniform(0.003, 0.014), pale, rng.uniform(0.15, 0.5), rng)
    if condition == "D":
        for _ in range(rng.integers(6, 18)):
            centre = 0.5 + rng.uniform(-0.36, 0.36, 2)
            _blob(image, grid, centre, rng.uniform(0.006, 0.024), dark, rng.uniform(0.35, 0.7), rng)
        for _ in range(rng.integers(10, 40)):
            centre = 0.5 + rng.uniform(-0.36, 0.36, 2)
            _blob(image, grid, centre, rng.uniform(0.002, 0.004), dark, rng.uniform(0.3, 0.6), rng)
        for _ in range(rng.integers(1, 5)):
            cluster = eye.macula + rng.normal(0, 0.11, 2)
            for _ in range(rng.integers(6, 25)):
                centre = cluster + rng.normal(0, 0.022, 2)
                _blob(image, grid, centre, rng.uniform(0.003, 0.009), yellow, rng.uniform(0.5, 0.9), rng)
    return image


def _blob(image, grid, centre, radius, colour, opacity, rng):
    """Blend an irregular spot into the image, in place and only in its neighbourhood."""
    size = image.shape[0]
    reach = 1.8 * radius + 1.5 / size
    (x0, y0), (x1, y1) = (np.clip(((centre + s * reach) * size).astype(int) + (s > 0), 0, size) for s in (-1, 1))
    if x1 <= x0 or y1 <= y0:
        return
    dx, dy = grid[0, y0:y1, x0:x1] - centre[0], grid[1, y0:y1, x0:x1] - centre[1]
    angle = np.arctan2(dy, dx)
    phases = rng.uniform(0, 2 * np.pi, 3)
    shape = sum(a * np.sin(k * angle + p) for k, a, p in zip((2, 3, 5), (0.25, 0.15, 0.1), phases, strict=True))
    softness = 0.18 + 0.5 / (size * radius)  # an edge of about a pixel
    alpha = opacity / (1 + np.exp((np.hypot(dx, dy) / radius - 1 - shape) / softness))
    patch = image[y0:y1, x0:x1]
    patch += alpha[..., None] * (colour - patch)


def _field_of_view(grid, size, rng):
    """The camera's circular aperture, often with the small tab that tells which way is up; antialiased."""
    x, y = grid[0] - 0.5, grid[1] - 0.5
    inside = FIELD_RADIUS - np.hypot(x, y)
    if rng.random() < 0.6:
        angle = rng.uniform(-0.75, -0.6)
        along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
        tab = np.minimum.reduce([FIELD_RADIUS + 0.028 - along, 0.026 - np.abs(across), along])
        inside = np.maximum(inside, tab)
    return np.clip(inside * size + 0.5, 0, 1)


def _light(image, grid, rng):
    """Uneven illumination: a brighter side, a rim that is darker, greener and hazy."""
    x, y = grid[0] - 0.5, grid[1] - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    tilt = rng.uniform(0.05, 0.4) * (x * np.cos(angle) + y * np.sin(angle))
    radius = np.hypot(x - rng.normal(0, 0.03), y - rng.normal(0, 0.03)) / FIELD_RADIUS
    rim = (np.clip(radius, 0, 1.1) ** rng.uniform(3, 6))[..., None]
    exposure = (rng.uniform(0.75, 1.15) * (1 + tilt))[..., None]
    haze = rim * _rgb(0.09, 0.11, 0.06, rng.uniform(0, 0.8))
    return image * exposure * (1 - rim * _rgb(1.0, 0.65, 0.5, rng.uniform(0.15, 0.4))) + haze


def _camera(image, field, size, rng):
    """Blur, aperture, noise, eight bits."""
    sigma = rng.uniform(0.0005, 0.0018) * size
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3)
    # Noise of the sensor averages out in small images, as it does when a real one is reduced.
    noise = np.float32(rng.uniform(0.008, 0.02) * min(1.0, (size / 256) ** 0.5))
    grain = noise * rng.standard_normal(image.shape, np.float32)
    image = (image + grain * np.sqrt(np.clip(image, 0.02, 1))) * field[..., None]
    dark = rng.uniform(0, 0.012)
    return np.round(255 * np.clip(image + dark, 0, 1)).astype(np.uint8)
