"""Images to tensors: augmentation for training, joint on image and mask, and a plain way for evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from PIL import Image

from .images import as_rgb, resize_image
from .masks import IGNORED, check_classes, check_labels, resize_mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# A crop of a label map is drawn anew, so often at most, while a class has more than this share of it: a crop of only
# road teaches little (mmsegmentation, `cat_max_ratio` of `RandomCrop`).
MAX_CLASS_SHARE, MAX_DRAWS = 0.75, 10


@dataclass(frozen=True)
class Augmentation:
    """
    How images vary in training. The defaults suit images that have no up and down, as those of vessels.

    Args:
        flips (`bool`, *optional*, defaults to `True`): Whether half of the samples are mirrored, left and right.
        turns (`bool`, *optional*, defaults to `True`): Whether samples are turned by a random number of quarters,
            which with `flips` mirrors them upside down, too. Street scenes are not turned.
        colours (`bool`, *optional*, defaults to `True`): Whether colours vary, see [`augment_colours`].
        scales (`tuple[float, float]`, *optional*, defaults to `(0.85, 1.0)`): Least and largest side of the square
            that a sample shows, as parts of `crop_size`; above 1 it shows more, and smaller.

    Raises:
        ValueError: If the scales are not two positive numbers in ascending order.
    """

    flips: bool = True
    turns: bool = True
    colours: bool = True
    scales: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self):
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales is {self.scales}: it must be two numbers, 0 < least <= largest.")


class TrainTransform:
    """
    Augment and normalise batches of a data set: `dataset.with_transform(TrainTransform(512))`.

    Flips, quarter turns and a crop of 0.85 to 1 of the side are joint on image and mask; colour, gamma, CLAHE,
    blur and noise change the image only. The crop is cut before anything else is done. It is always square, so
    that nothing is stretched: where it reaches beyond an image that is not, or that is smaller, pixels are mirrored
    and labels are 255, as at inference. All draws come from torch's global generator, so that a seeded `DataLoader`
    repeats them.

    Args:
        size (`int`): Side of the tensors in pixels.
        crop_size (`int`, *optional*):
            Side of the square that is cut out of the image, before it is scaled by 0.85 to 1, and resized to
            `size`. By default the longer side of the image.
        num_labels (`int`, *optional*, defaults to 2):
            Number of classes. With more than two a crop that nearly all belongs to one class is drawn anew.
        augmentation (`Augmentation`, *optional*): How images vary.
        image_mean (`Sequence[float]`, *optional*, defaults to ImageNet's): Subtracted from each colour in [0, 1].
        image_std (`Sequence[float]`, *optional*, defaults to ImageNet's): Each colour is divided by it.

    Returns:
        `dict` of lists: `pixel_values`, float tensors (3, size, size); `labels`, long tensors (size, size) of classes,
        {0, 1} by default, and 255 where pixels do not count.

    Raises:
        ValueError: If a size is not positive, or (when called) if an image differs in size from its mask, or the
            mask holds anything but classes and 255.
    """

    def __init__(
        self,
        size: int,
        *,
        crop_size: int | None = None,
        num_labels: int = 2,
        augmentation: Augmentation | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ):
        _check_positive(size=size, crop_size=crop_size)
        self.size, self.crop_size, self.num_labels = size, crop_size, num_labels
        self.augmentation = augmentation or Augmentation()
        self.mean, self.std = _channels(image_mean), _channels(image_std)

    def __call__(self, batch: dict[str, list]) -> dict[str, list[torch.Tensor]]:
        pairs = [self._augment(*pair) for pair in zip(batch["image"], batch["mask"], strict=True)]
        return {"pixel_values": [image for image, _ in pairs], "labels": [mask for _, mask in pairs]}

    def _augment(self, image: Image.Image, mask: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        _check_same_size(image, mask)
        # Cut first: to resize or copy a whole image for one crop of it would take longer than all the rest.
        labels = _label_values(mask, self.num_labels)
        image, labels = cut_box(as_rgb(image), labels, *self._choose_box(labels))
        labels = resize_mask(labels, self.size, self.num_labels)
        pixels, labels = _to_tensors(resize_image(image, self.size), labels)
        augmentation = self.augmentation
        turns = int(torch.randint(4, ())) if augmentation.turns else 0
        flip = augmentation.flips and _chance(0.5)
        pixels, labels = torch.rot90(pixels, turns, (-2, -1)), torch.rot90(labels, turns, (-2, -1))
        if flip:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        if augmentation.colours:
            pixels = augment_colours(pixels[None])[0]
        return (pixels - self.mean) / self.std, labels.contiguous()

    def _choose_box(self, labels: np.ndarray) -> tuple[int, int, int]:
        """Left, top and side of the square to keep; of more than two classes one that is not nearly all of one."""
        height, width = labels.shape
        box = self._draw_box(width, height)
        for _ in range(MAX_DRAWS if self.num_labels > 2 else 0):
            left, top, side = box
            inside = labels[max(top, 0) : top + side, max(left, 0) : left + side]
            counts = np.bincount(inside[inside != IGNORED], minlength=1)
            if 0 < counts.max() <= MAX_CLASS_SHARE * counts.sum():
                break
            box = self._draw_box(width, height)
        return box

    def _draw_box(self, width: int, height: int) -> tuple[int, int, int]:
        """Left, top and side of a square; left and top are negative where it reaches beyond the image."""
        side = max(1, round(_uniform(*self.augmentation.scales) * (self.crop_size or max(width, height))))
        left, top = (
            min(0, length - side) + int(torch.randint(abs(length - side) + 1, ())) for length in (width, height)
        )
        return left, top, side


class EvalTransform:
    """
    Normalise batches of a data set without augmenting them: `dataset.with_transform(EvalTransform())`.

    Args:
        size (`int`, *optional*):
            Side of the square into which images and masks are fitted: their longer side is brought to it, the
            rest at the bottom or right is mirrored pixels and labels of 255. By default they keep their size.
        num_labels (`int`, *optional*, defaults to 2): Number of classes.
        image_mean (`Sequence[float]`, *optional*, defaults to ImageNet's): Subtracted from each colour in [0, 1].
        image_std (`Sequence[float]`, *optional*, defaults to ImageNet's): Each colour is divided by it.

    Returns:
        `dict` of lists: `pixel_values`, float tensors (3, height, width); `labels`, long tensors (height, width) of
        classes, {0, 1} by default, and 255 where pixels do not count; `name` and `condition` as they were.

    Raises:
        ValueError: If the size is not positive, or (when called) an image differs in size from its mask, or the
            mask holds anything but classes and 255.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        num_labels: int = 2,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ):
        _check_positive(size=size)
        self.size, self.num_labels = size, num_labels
        self.mean, self.std = _channels(image_mean), _channels(image_std)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        pairs = [self._prepare(*pair) for pair in zip(batch["image"], batch["mask"], strict=True)]
        return {
            "pixel_values": [image for image, _ in pairs],
            "labels": [mask for _, mask in pairs],
            "name": batch["name"],
            "condition": batch["condition"],
        }

    def _prepare(self, image: Image.Image, mask: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        _check_same_size(image, mask)
        image, labels = as_rgb(image), _label_values(mask, self.num_labels)
        if self.size is not None:
            image, labels = resize_image(image, self.size), resize_mask(labels, self.size, self.num_labels)
            image, labels = cut_box(image, labels, 0, 0, self.size)
        pixels, labels = _to_tensors(image, labels)
        return (pixels - self.mean) / self.std, labels


def cut_box(image: Image.Image, mask: np.ndarray, left: int, top: int, side: int) -> tuple[Image.Image, np.ndarray]:
    """
    Cut the same square out of an image and its mask, which may reach beyond them.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask (`np.ndarray` of shape (height, width)): Its mask.
        left (`int`): First column, negative left of the image.
        top (`int`): First row.
        side (`int`): Side of the square.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: Beyond its edge the image is mirrored and the mask is 255.
    """
    height, width = mask.shape
    right, bottom = left + side, top + side
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    image, mask = image.crop(inside), mask[inside[1] : inside[3], inside[0] : inside[2]]
    if mask.shape == (side, side):
        return image, mask
    margins = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]))
    # Of indices, not of pixels: mirrors strips of less than half the square, too, and copies the pixels once.
    rows, columns = (
        np.pad(np.arange(length), margin, mode="reflect") for length, margin in zip(mask.shape, margins, strict=True)
    )
    mirrored = Image.fromarray(np.asarray(image)[rows[:, None], columns])
    return mirrored, np.pad(mask, margins, constant_values=IGNORED)


def augment_colours(pixels: torch.Tensor) -> torch.Tensor:
    """
    Change colours, contrast, sharpness and noise at random; nothing moves.

    Args:
        pixels (`torch.Tensor` of shape (1, 3, height, width)): Colours in [0, 1].

    Returns:
        `torch.Tensor` of the same shape: Colours in [0, 1].
    """
    # kornia's functions rather than its augmentation modules, whose bookkeeping costs more than the work at this size.
    if _chance(0.8):
        pixels = enhance.adjust_contrast_with_mean_subtraction(pixels, _uniform(0.8, 1.25))
        pixels = enhance.adjust_saturation_with_gray_subtraction(pixels, _uniform(0.75, 1.3))
        pixels = enhance.adjust_brightness_accumulative(pixels, _uniform(0.8, 1.2))
    if _chance(0.3):
        pixels = enhance.adjust_hue(pixels, _uniform(-0.12, 0.12))
    if _chance(0.3):
        pixels = enhance.adjust_gamma(pixels.clamp(0, 1), _uniform(0.75, 1.33))
    if _chance(0.2):
        pixels = _equalise(pixels.clamp(0, 1), _uniform(1.0, 3.0))
    if _chance(0.2):
        sigma = _uniform(0.3, 1.2)
        pixels = gaussian_blur2d(pixels, (5, 5), (sigma, sigma))
    if _chance(0.3):
        pixels = pixels + _uniform(0.0, 0.04) * torch.randn_like(pixels)
    return pixels.clamp(0, 1)


def _equalise(pixels: torch.Tensor, clip_limit: float) -> torch.Tensor:
    """CLAHE of the brightness; the colours keep their proportions, and black stays nearly black."""
    grey = rgb_to_grayscale(pixels)
    side = min(grey.shape[-2:])
    tiles = max(1, min(8, side // 16))
    gain = enhance.equalize_clahe(grey, clip_limit, (tiles, tiles)) / grey.clamp(min=0.02)
    return pixels * gain.clamp(max=3)


def _label_values(mask: Image.Image, num_labels: int) -> np.ndarray:
    """A label map as it is loaded: classes, {0, 1} for vessels, and 255 where pixels are ignored."""
    labels = np.asarray(mask)
    if num_labels == 2:
        check_labels(labels, f"A mask of mode {mask.mode}")
    else:
        check_classes(labels, num_labels, f"A label map of mode {mask.mode}")
    return labels.astype(np.uint8, copy=False)


def _to_tensors(image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return pixels.contiguous(), torch.from_numpy(labels.astype(np.int64))


def _channels(values: Sequence[float]) -> torch.Tensor:
    if len(values) != 3:
        raise ValueError(f"Mean and standard deviation have one value for each of red, green and blue, got {values}.")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _check_positive(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_same_size(image: Image.Image, mask: Image.Image) -> None:
    if image.size != mask.size:
        raise ValueError(f"The image has {image.size} pixels (width, height) but its mask {mask.size}.")


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
