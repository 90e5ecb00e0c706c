"""load_segmentation: from images in folders, on the Hub, in a saved data set, or synthetic ones, to rows by split."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value, config
from datasets.exceptions import DatasetGenerationError

from .class_names import check_occurrence, find_labels
from .features import CONDITIONS, FEATURES, FINGERPRINTS, QUALITY, Record, list_some, problems_error
from .images import (
    SUFFIXES,
    as_rgb,
    encode_png,
    fingerprint_image,
    has_8_bits,
    open_content,
    resize_image,
    store_content,
)
from .label_maps import LabelFormat, ValuesWithoutClass, list_values, read_label_map
from .masks import (
    binary_mask,
    check_foreground,
    check_share,
    check_vessel_labels,
    fingerprint_mask,
    interpret_mask,
    resize_mask,
)
from .sources.fives_archive import FILE_NAME, IMAGES, MASKS, list_archive
from .sources.image_folders import list_folders
from .sources.saved_datasets import SavedRecords, list_saved
from .sources.synthetic import list_synthetic
from .splits import (
    MAPPING_SUFFIXES,
    SPLITS,
    check_unique,
    compile_pattern,
    group_duplicates,
    read_split_request,
    split_records,
    warn_of_left_out,
)
from .streams import stream_records, stream_rows

logger = logging.getLogger(__name__)

# Part of every cache key: raise it when other rows come out of the same input.
_VERSION = 2


def load_segmentation(
    source: str | Path | Mapping,
    *,
    classes: Sequence[str] | Mapping | str | Path | None = None,
    ignore_value: int | Sequence[int] | None = None,
    reduce_labels: bool | None = None,
    split: str | Path | Mapping[str, list[str]] = "official",
    seed: int = 0,
    validation_fraction: float = 0.1,
    working_size: int | None = None,
    condition_pattern: str | None = None,
    group_pattern: str | None = None,
    vessel_labels: Sequence[int] | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    synthetic_counts: tuple[int, int, int] = (64, 8, 16),
    fingerprints: bool = False,
) -> DatasetDict | IterableDatasetDict:
    r"""
    Load images with label maps of any number of classes, or with vessel masks.

    The rows have `image` (RGB), `mask` (grey: the index of the class of each pixel, 255 where it is ignored), `name`,
    `condition` (a class label, `"unknown"` where none is known) and `classes` (class labels: those that the label map
    shows; its feature names all classes, see [`~datasets_fives.class_names`]). Where no class has a name, these are
    vessel masks: 1 is vessel, and there is no `classes`. Where the source has masks of the field of view there is also
    `field_of_view` (grey, {0, 1}), and where it grades its images `illumination`, `blur` and `contrast` (text).
    Duplicates, images with the same pixels or the same mask, are never in two splits.

    Args:
        source (`str`, `Path` or `Mapping`):
            One of: the folder of the FIVES archive, train, test or both (Jin et al., Scientific Data 2022,
            doi:10.1038/s41597-022-01564-3); folders of images and masks, or a mapping or YAML file that names
            them, see [`~datasets_fives.sources.image_folders.list_folders`]; a directory written by `save_to_disk`, a
            folder with Parquet files, or a Hub id `"user/name"`, with a column of images (`image` or `pixel_values`),
            one of masks (`mask`, `label`, `annotation` or `segmentation_mask`), and optionally `name`, `condition`,
            `field_of_view`; `"synthetic"`.
        classes (`Sequence[str]`, `Mapping`, `str` or `Path`, *optional*):
            Names of the classes, with their values or colours where these are not 0, 1, 2, ..., see
            [`~datasets_fives.label_maps.read_label_format`]; or a file of them. By default those of the column
            `classes`, of the mapping or YAML file, or of `id2label.json`, `classes.json` or `classes.txt` in the
            folder or repository; `()` for vessel masks whatever lies there. Two classes are read like vessel masks,
            the second is the foreground.
        ignore_value (`int` or `Sequence[int]`, *optional*):
            Value (or colour) of pixels that do not count, or several. By default 255 (white), unless that is of a
            class.
        reduce_labels (`bool`, *optional*):
            Whether label maps count the classes from 1, and 0 is ignored, as under transformers' `do_reduce_labels`.
            By default what the YAML file says, else not.
        split (`str`, `Path` or `Mapping[str, list[str]]`, *optional*, defaults to `"official"`):
            `"official"`: train and test as published, a validation part taken out of train, stratified by condition,
            unless the source has one already; a training image with a duplicate in test is left out with a warning.
            `"resplit"`: everything split anew, 70:20:10 for train, test and validation, stratified by condition.
            `"sample"`: the split of the 14-image sample of FIVES, [`~datasets_fives.splits.SAMPLE_SPLIT`]. Or
            the names of each split, or a YAML or JSON file of them.
        seed (`int`, *optional*, defaults to 0): Seed of the draws and of the synthetic images.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            Fraction of train that validates under `"official"`; 0 for none. Not for synthetic images, whose
            counts decide.
        working_size (`int`, *optional*):
            Longer side in pixels to which images (bilinear, antialiased), masks (area average, threshold one half)
            and label maps (nearest pixel) are scaled, their aspect ratio kept; smaller ones are enlarged, for a model
            sees images at one scale. By default they keep their size; synthetic images are drawn at 256.
        condition_pattern (`str`, *optional*):
            Regular expression with one group that finds the condition in a name. By default the column `condition`,
            or what follows the number in names that are all like `01_dr`.
        group_pattern (`str`, *optional*):
            Regular expression with one group that finds in a name what an image belongs to, such as the film of a
            frame, `r"^(\w+)_\d+$"`: a drawn split does not take these apart. A published one is kept.
        vessel_labels (`Sequence[int]`, *optional*):
            Values of a label map that are vessels, or of the second of two classes, such as `[1, 2]` for arteries and
            veins; without it, such masks are refused.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`, *optional*, defaults to `False`):
            Return iterable data sets. From the Hub and from Parquet nothing is downloaded ahead, so duplicates and
            empty masks cannot be looked for: names alone decide, and there must be a column of them.
            `info.splits[split].num_examples` is the number of rows of a split.
        cache_dir (`str` or `Path`, *optional*): Where prepared rows are kept; default the cache of `datasets`.
        synthetic_counts (`tuple[int, int, int]`, *optional*, defaults to `(64, 8, 16)`):
            Number of synthetic images for train, validation and test.
        fingerprints (`bool`, *optional*, defaults to `False`):
            Keep the columns `image_hash` and `mask_hash`, which identify an image and its mask whatever their
            file, name and `working_size`; a stream of which nothing is downloaded ahead has none.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` when streaming, with `train`, `validation` and `test`, less the empty
        ones.

    Raises:
        ValueError: If an argument is wrong, the source is none of the above, its files are broken, label maps have
            values without a class, no mask shows a vessel, or the split cannot be made.
    """
    request = read_split_request(split, seed, validation_fraction, group_pattern)
    if classes == () and (ignore_value is not None or reduce_labels):
        raise ValueError("ignore_value and reduce_labels are of label maps, which need names of classes.")
    _check_arguments(working_size, vessel_labels, condition_pattern)
    # As part of cache keys: equal requests in equal form.
    options = {"working_size": working_size, "vessel_labels": vessel_labels and tuple(vessel_labels)}
    kind = source_kind(source)
    if kind == "synthetic":  # drawn at its size, and split by its counts
        listing = list_synthetic(synthetic_counts, working_size or 256, seed)
        options = dict.fromkeys(options)
        request = request._replace(validation_fraction=0.0)
    elif kind == "archive":
        listing = list_archive(Path(source).resolve())
    elif kind == "folders":
        listing = list_folders(source, condition_pattern)
    else:
        listing = list_saved(source, condition_pattern, revision, streaming, cache_dir)
    records, contents = listing.records, listing.contents
    request = request._replace(group_pattern=group_pattern or listing.stated.get("group_pattern"))
    if classes != ():
        labels = find_labels(source, listing.stated, classes, ignore_value, reduce_labels, vessel_labels, revision)
        options |= {"labels": labels} if labels else {}
    conditions = listing.conditions or _condition_names(records)
    check_unique([record.name for record in records])
    labels = options.get("labels")
    features = _features(records, conditions, labels)
    # A split that cannot be made is refused before gigabytes are decoded; duplicates are known only afterwards.
    splits = split_records(records, range(len(records)), conditions, request)
    warn_of_left_out(records, splits, request)
    if isinstance(contents, SavedRecords) and contents.is_stream:
        logger.warning("Streaming %s: pixels are not compared, so duplicates are not looked for.", source)
        return stream_records(contents, splits, features, checked_row, options)
    rows = _generate(contents, features, options, Path(cache_dir or config.HF_DATASETS_CACHE))
    _check_content(rows, labels, str(source))
    groups = group_duplicates(*(rows[column][:] for column in FINGERPRINTS))
    splits = split_records(records, groups, conditions, request)
    if not fingerprints:
        rows = rows.remove_columns(list(FINGERPRINTS))
    result = DatasetDict({name: rows.select(indices) for name, indices in splits.items()})
    return stream_rows(result) if streaming else result


def _check_arguments(working_size: int | None, vessel_labels: Sequence[int] | None, condition_pattern: str | None):
    if working_size is not None and working_size < 16:
        raise ValueError(f"working_size must be at least 16, got {working_size}.")
    check_vessel_labels(vessel_labels)
    compile_pattern(condition_pattern)


def _check_content(rows: Dataset, labels: LabelFormat | None, where: str) -> None:
    """Refuse what nothing can be learnt from, and warn of masks and classes that are empty."""
    names, mask_hashes = rows["name"][:], rows["mask_hash"][:]
    if labels is not None:
        check_occurrence(rows["classes"][:], labels.names, where, names)
    elif not any(mask_hashes):
        check_foreground(rows.with_format("numpy", columns=["mask"])["mask"], where)
    elif empty := [name for name, mask_hash in zip(names, mask_hashes, strict=True) if not mask_hash]:
        logger.warning("%d of %d masks show no vessel: %s", len(empty), len(names), list_some(empty))


def load_vessels(source: str | Path | Mapping, **kwargs) -> DatasetDict | IterableDatasetDict:
    """
    [`load_segmentation`] for vessel masks, whatever class names there are.

    Args:
        source (`str`, `Path` or `Mapping`): See [`load_segmentation`].
        kwargs: Those of [`load_segmentation`], but for `classes`.

    Raises:
        ValueError: See [`load_segmentation`].
    """
    return load_segmentation(source, classes=(), **kwargs)


def source_kind(source: str | Path | Mapping) -> str:
    """
    What a source is: `"synthetic"`, `"archive"` (FIVES as published), `"saved"` (by `save_to_disk`, or Parquet),
    `"folders"` (of images and masks, or a mapping or file that names them), or else perhaps a `"hub"` id.
    """
    if isinstance(source, Mapping):
        return "folders"
    if source == "synthetic":
        return "synthetic"
    folder = Path(source)
    places = [folder / split / kind for split in ("train", "test") for kind in (IMAGES, MASKS)]
    if any(place.is_dir() for place in places):
        names = [path.name for place in places if place.is_dir() for path in place.iterdir()]
        # Folders of these names may also hold other images.
        if any(map(FILE_NAME.fullmatch, names)) or not any(name.lower().endswith(SUFFIXES) for name in names):
            return "archive"
    saved = ("dataset_dict.json", "state.json", "*.parquet", *(f"data/{split}[-.]*parquet" for split in SPLITS))
    if any(any(folder.glob(pattern)) for pattern in saved):
        return "saved"
    if folder.is_dir() or (folder.is_file() and str(source).endswith(MAPPING_SUFFIXES)):
        return "folders"
    return "hub"


def _condition_names(records: Sequence[Record]) -> list[str]:
    """Those of FIVES, or the conditions that occur, sorted."""
    found = {record.condition for record in records}
    return list(CONDITIONS) if found <= set(CONDITIONS) else sorted(found)


def _features(records: Sequence[Record], conditions: list[str], labels: LabelFormat | None) -> Features:
    """The columns of the rows; the first four are those of every source, in this order."""
    features = Features({**FEATURES, "condition": ClassLabel(names=conditions)})
    if records and records[0].field_of_view is not None:
        features["field_of_view"] = Image(mode="L")
    if records and records[0].quality is not None:
        features.update({grade: Value("string") for grade in QUALITY})
    if labels is not None:
        features["classes"] = List(ClassLabel(names=list(labels.names)))
    return features


def checked_row(
    record: Record,
    *,
    working_size: int | None = None,
    vessel_labels: Sequence[int] | None = None,
    labels: LabelFormat | None = None,
) -> dict:
    """
    Read the image of a record with its masks, check them, and optionally scale them.

    Args:
        record ([`Record`]): A complete one.
        working_size (`int`, *optional*): Longer side in pixels. By default as it is.
        vessel_labels (`Sequence[int]`, *optional*): See [`~datasets_fives.masks.binary_mask`].
        labels ([`LabelFormat`], *optional*): What its label map means. By default it is a vessel mask.

    Returns:
        `dict`: The row, with its fingerprints and `meaning_of_255`, see [`~datasets_fives.masks.interpret_mask`];
        images as `datasets` stores them.

    Raises:
        ValueError: If image or masks cannot be read, are not what they should be, or their sizes differ.
    """
    decoded = open_content("image", record.image)
    image = as_rgb(decoded)
    opened, num_labels, meaning_of_255 = open_content("mask", record.mask), len(labels.names) if labels else 2, ""
    if labels is None or labels.is_plain_binary:
        mask, meaning_of_255 = interpret_mask(opened, vessel_labels)
        if vessel_labels is None and labels is None:
            check_share(mask)
    else:
        mask = read_label_map(opened, labels)
    masks = {"mask": mask}
    if record.field_of_view is not None:
        opened = open_content("field of view", record.field_of_view)
        try:
            masks["field_of_view"] = (binary_mask(opened) == 1).astype(np.uint8)
        except ValueError as error:
            raise ValueError(f"field of view {error}") from error
        if not masks["field_of_view"].any():
            raise ValueError("field of view is empty")
    for kind, pixels in masks.items():
        size = pixels.shape[::-1]
        if size != image.size:
            turned = " (both after their EXIF orientation: was the mask drawn on an image that was not turned?)"
            raise ValueError(
                f"image is {image.width}x{image.height} but {kind.replace('_', ' ')} is {size[0]}x{size[1]}"
                f"{turned if size == image.size[::-1] else ''}"
            )
    hashes = (record.image_hash or fingerprint_image(image), fingerprint_mask(masks["mask"], num_labels))
    if working_size is not None:
        image = resize_image(image, working_size)
        masks = {
            kind: resize_mask(pixels, working_size, num_labels if kind == "mask" else 2)
            for kind, pixels in masks.items()
        }
    is_original = working_size is None and has_8_bits(decoded)
    return {
        "image": store_content(record.image, image, is_original),
        **{kind: encode_png(pixels) for kind, pixels in masks.items()},
        "name": record.name,
        "condition": record.condition,
        **dict(zip(QUALITY, record.quality or (), strict=False)),
        **dict(zip(FINGERPRINTS, hashes, strict=True)),
        **({"classes": np.unique(masks["mask"][masks["mask"] < num_labels]).tolist()} if labels else {}),
        "meaning_of_255": meaning_of_255,
    }


def checked_rows(contents: Sequence[Record], version: int = _VERSION, **options) -> Iterator[dict]:
    """
    Rows of records; `ValueError` at the end for all that cannot be read.

    Args:
        contents (`Sequence[Record]`): Complete records.
        version (`int`, *optional*): Not used; part of the cache key, so that caches of an older version are stale.
        options: Those of [`checked_row`].
    """
    problems: list[str] = []
    names: dict[str, list[str]] = {"vessel": [], "ignored": [], "": []}
    without_class: dict[str, ValuesWithoutClass] = {}
    for record in contents:
        try:
            row = checked_row(record, **options)
        except ValuesWithoutClass as error:
            without_class[_name_files(record)] = error
            continue
        except ValueError as error:
            problems.append(f"{_name_files(record)}: {error}")
            continue
        names[row.pop("meaning_of_255")].append(record.name)
        if not problems and not without_class:  # else nothing will be kept: only look for further problems
            yield row
    if names["vessel"] and names["ignored"]:
        white, ignored = (", ".join(names[meaning][:5]) for meaning in ("vessel", "ignored"))
        problems.append(
            f"255 seems to mean vessel in {len(names['vessel'])} masks ({white}) and ignored beside labels of 1 in "
            f"{len(names['ignored'])} ({ignored}): name the vessels, vessel_labels=[1] or vessel_labels=[255]"
        )
    if without_class:
        problems += list_values(without_class)
    if problems:
        raise problems_error("the data set", problems)


def _name_files(record: Record) -> str:
    """The name of a record, and of its mask if that is called otherwise."""
    if isinstance(record.mask, str) and Path(record.mask).stem != record.name.rpartition("/")[2]:
        return f"{record.name} (mask {Path(record.mask).name})"
    return record.name


def _generate(contents: Sequence[Record], features: Features, options: dict, cache: Path) -> Dataset:
    """
    Rows, written once: `datasets` locks the cache, and renames it only when it is complete. Other versions of the
    libraries draw and scale differently, so each has rows of its own.
    """
    libraries = "_".join(f"{name}-{version(name)}" for name in ("numpy", "pillow", "scikit-image", "scipy"))
    try:
        return Dataset.from_generator(
            checked_rows,
            features=Features({**features, **{column: Value("string") for column in FINGERPRINTS}}),
            gen_kwargs={"contents": contents, "version": _VERSION, **options},
            cache_dir=str(cache / "reg4pru" / libraries),
            writer_batch_size=16,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    except OSError as error:  # before any row is made: that is another error
        raise ValueError(
            f"The prepared rows cannot be written to {cache} ({error}): set cache_dir or HF_DATASETS_CACHE."
        ) from error
