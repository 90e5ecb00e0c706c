"""The circular field of view of a fundus image."""

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.measure import CircleModel, label, ransac
from skimage.morphology import convex_hull_image

# The geometry is found on an image thinned to about this many pixels a side and then drawn at full size.
WORKING_SIZE = 512
# Unlit sensor pixels read 0 to 10 of 255; the darkest retina reads more than twice that in the red channel.
DARKEST_CORNER = 20
# A field smaller than this part of the image is taken for a speck, not for a field of view.
SMALLEST_FIELD = 0.1
# Fraction of the field's edge that must lie on the fitted circle; the rest is a notch, a flat side or glare.
CIRCLE_SUPPORT = 0.75


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Find the circular field of view of a fundus image.

    The largest connected region that is brighter than the darkest corner is taken, a circle is fitted to its edge
    by RANSAC, and the inside of the circle is the field of view. Burned-in characters and the orientation notch at
    the rim are outside it. A field that is no circle (a camera that cuts its top and bottom) gives the convex hull of
    the region instead. An image with no dark corner, such as a tile from the middle, is all field of view.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`, `uint8`):
            The colour image, or a part of it.

    Returns:
        `np.ndarray` of shape `(height, width)`, `bool`: `True` inside the field of view.

    Raises:
        `ValueError`: If `image` has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
        raise ValueError(
            f"field_of_view needs an RGB image of shape (height, width, 3) and type uint8, got shape {image.shape} "
            f"and type {image.dtype}."
        )
    height, width = image.shape[:2]
    everything = np.ones((height, width), dtype=bool)

    step = max(1, round(max(height, width) / WORKING_SIZE))
    # Pillow's filter, as scipy's takes twice as long.
    brightness = Image.fromarray(image[::step, ::step].max(axis=2)).filter(ImageFilter.MedianFilter(3))
    brightness = np.asarray(brightness, dtype=np.float32)
    patch = max(1, min(brightness.shape) // 32)
    # The darkest corner, so that characters in one of them, or a tile that shows only one, do no harm.
    corner = min(
        float(np.median(brightness[rows, columns]))
        for rows in (slice(None, patch), slice(-patch, None))
        for columns in (slice(None, patch), slice(-patch, None))
    )
    contrast = float(np.percentile(brightness, 90)) - corner
    if corner > DARKEST_CORNER or contrast < DARKEST_CORNER:
        return everything

    regions = label(brightness > corner + max(10.0, 0.1 * contrast), connectivity=1)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    if sizes.max() < SMALLEST_FIELD * brightness.size:
        return everything
    field = ndimage.binary_fill_holes(regions == sizes.argmax())

    # Where the image itself ends the field has no edge, hence border_value=1.
    edge = np.argwhere(field & ~ndimage.binary_erosion(field, border_value=1))
    circle = _fit_circle(edge)
    if circle is None:
        hull = convex_hull_image(field)
        return np.repeat(np.repeat(hull, step, axis=0), step, axis=1)[:height, :width]
    (row, column), radius = circle
    rows, columns = np.ogrid[:height, :width]
    return (columns - column * step) ** 2 <= (radius * step) ** 2 - (rows - row * step) ** 2


def _fit_circle(edge: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Centre and radius of the circle through most of the edge points `(n, 2)`, or `None` if they form no circle."""
    if len(edge) < 10:
        return None
    _, inliers = ransac(edge.astype(float), CircleModel, min_samples=3, residual_threshold=1.5, max_trials=200, rng=0)
    if inliers is None or inliers.mean() < CIRCLE_SUPPORT:
        return None
    # A last least-squares fit, |p|^2 = 2 centre·p + (radius^2 - |centre|^2): CircleModel's attributes changed names.
    points = edge[inliers].astype(float)
    system = np.column_stack([2 * points, np.ones(len(points))])
    (row, column, rest), *_ = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)
    # The edge pixels are the last ones inside: the border itself runs half a pixel further out.
    return np.array([row, column]), float(np.sqrt(rest + row**2 + column**2)) + 0.5
