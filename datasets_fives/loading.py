"""load_vessels: one call for images in folders, on the Hub, in a saved data set, or synthetic ones."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    SplitDict,
    SplitInfo,
    concatenate_datasets,
    config,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError

from .features import CONDITIONS, FINGERPRINTS, compile_pattern, condition_names, row_features
from .masks import check_foreground, check_vessel_labels
from .sources.fives_archive import Image, is_published_layout, list_images, read_images
from .sources.image_folders import DESCRIPTION as TWO_FOLDERS
from .sources.image_folders import is_two_folders, list_pairs
from .sources.saved_datasets import (
    find_columns,
    is_stored,
    open_stored,
    parquet_files,
    prepare_row,
    read_labels,
    read_rows,
    undecoded,
)
from .sources.synthetic import synthetic_images
from .splits import SIDES, check_split_request, read_split, split_images, twin_groups

logger = logging.getLogger(__name__)

# Part of every cache key: raise it when the rows change that the same input gives.
_FILES_VERSION = 2
_STORED_VERSION = 2
_SYNTHETIC_VERSION = 3
_OTHER_SOURCES = (
    'a folder in the published layout of FIVES ("<split>/Original/*.png", "<split>/Ground truth/*.png"), '
    f"{TWO_FOLDERS}"
)


def load_vessels(
    source: str | Path | Mapping,
    *,
    split: str | Path | Mapping[str, list[str]] = "official",
    seed: int = 0,
    validation_fraction: float = 0.1,
    working_size: int | None = None,
    condition_pattern: str | None = None,
    vessel_labels: Sequence[int] | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    synthetic_counts: tuple[int, int, int] = (64, 8, 16),
    fingerprints: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """
    Load images with vessel masks.

    The rows have `image` (RGB), `mask` (grey, {0, 1}, 1 is vessel; in label maps with an ignore value also 255, see
    [`~datasets_fives.masks.counted_pixels`]), `name` and `condition` (a class label, `"unknown"` where none is known).
    Where the source has masks of the field of view there is also `field_of_view` (grey, {0, 1}), and where it grades
    its images `illumination`, `blur` and `contrast` (text). Images with the same pixels or the same mask
    (twins) never land on two sides.

    Args:
        source (`str`, `Path` or `Mapping`):
            One of: the folder of the FIVES archive, train, test or both (Jin et al., Scientific Data 2022,
            doi:10.1038/s41597-022-01564-3); folders of images and masks, or a mapping or YAML file that names
            them, see [`~datasets_fives.sources.image_folders.list_pairs`]; a directory written by `save_to_disk`, a
            folder with Parquet files, or a Hub id `"user/name"`, with a column of images (`image` or `pixel_values`),
            one of masks (`mask`, `label`, `annotation` or `segmentation_mask`), and if wanted `name`, `condition`,
            `field_of_view`; `"synthetic"`.
        split (`str`, `Path` or `Mapping[str, list[str]]`, *optional*, defaults to `"official"`):
            `"official"`: train and test as published, a validation part taken out of train, stratified by condition,
            unless the source has one already; a training image whose twin tests is left out with a warning.
            `"resplit"`: everything split anew, 70:20:10 for train, test and validation, stratified by condition.
            `"sample"`: the split of the 14-image sample of FIVES, [`~datasets_fives.splits.SAMPLE_SPLIT`]. Or
            the names of each side, or a YAML or JSON file of them.
        seed (`int`, *optional*, defaults to 0): Seed of the draws and of the synthetic images.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            Fraction of train that validates under `"official"`; 0 for none. Not for synthetic images, whose
            counts say it.
        working_size (`int`, *optional*):
            Longer side in pixels to which images (bilinear, antialiased) and masks (area average, threshold one
            half) are brought, their aspect kept; smaller ones are enlarged, for a model sees images at one
            scale. By default they keep their size; synthetic images are drawn at 256.
        condition_pattern (`str`, *optional*):
            Regular expression with one group that finds the condition in a name. By default the column `condition`,
            or what follows the number in names that are all like `01_dr`.
        vessel_labels (`Sequence[int]`, *optional*):
            Values of a label map that are vessels, such as `[1, 2]` for arteries and veins; without it, such masks
            are refused.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`, *optional*, defaults to `False`):
            Return iterable data sets. From the Hub and from Parquet nothing is downloaded ahead, so twins and empty
            masks cannot be looked for: names alone decide, and there must be a column of them.
            `info.splits[side].num_examples` tells how many rows a side has.
        cache_dir (`str` or `Path`, *optional*): Where prepared rows are kept; default the cache of `datasets`.
        synthetic_counts (`tuple[int, int, int]`, *optional*, defaults to `(64, 8, 16)`):
            Number of synthetic images for train, validation and test.
        fingerprints (`bool`, *optional*, defaults to `False`):
            Keep the columns `image_hash` and `mask_hash`, by which an image and its mask are known whatever their
            file, name and `working_size`; of a stream that nothing is downloaded of ahead there are none.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` when streaming, with `train`, `validation` and `test`, less the empty
        ones.

    Raises:
        ValueError: If an argument is wrong, the source is none of the above, its files are broken, no mask shows a
            vessel, or the split cannot be made.
    """
    split = read_split(split)
    check_split_request(split, validation_fraction)
    if working_size is not None and working_size < 16:
        raise ValueError(f"working_size must be at least 16, got {working_size}.")
    check_vessel_labels(vessel_labels)
    compile_pattern(condition_pattern)
    cache = Path(cache_dir) if cache_dir is not None else Path(config.HF_DATASETS_CACHE)
    # As part of cache keys: equal requests in equal form.
    reading = {"working_size": working_size, "vessel_labels": vessel_labels and tuple(vessel_labels)}

    if source == "synthetic":
        rows, published = _load_synthetic(synthetic_counts, seed, working_size or 256, cache)
        validation_fraction = 0.0  # the counts say how many validate
    elif not isinstance(source, Mapping) and is_published_layout(Path(source)):
        images = list_images(Path(source).resolve())
        rows, published = _load_files(images, split, seed, validation_fraction, reading, cache)
    elif isinstance(source, Mapping) or (not is_stored(source) and is_two_folders(source)):
        images = list_pairs(source, condition_pattern)
        rows, published = _load_files(images, split, seed, validation_fraction, reading, cache)
    else:
        opened = open_stored(source, revision, streaming, cache_dir, _OTHER_SOURCES)
        if streaming and isinstance(opened, IterableDatasetDict):
            return _stream(opened, source, revision, condition_pattern, split, seed, validation_fraction, reading)
        rows, published = _load_stored(opened, source, condition_pattern, reading, cache)
    result = _split(rows, published, source, split, seed, validation_fraction)
    if not fingerprints:
        result = result.remove_columns(list(FINGERPRINTS))
    if streaming:
        return IterableDatasetDict(
            {side: _counted(part.to_iterable_dataset(), side, len(part)) for side, part in result.items()}
        )
    return result


def load_fives(
    source: str | Path,
    *,
    split: str | Path | Mapping[str, list[str]] = "official",
    seed: int = 0,
    validation_fraction: float = 0.1,
    working_size: int | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    synthetic_counts: tuple[int, int, int] = (64, 8, 16),
) -> DatasetDict | IterableDatasetDict:
    """
    [`load_vessels`] for FIVES, as its archive, as it lies on the Hub, as this project stores it, or in its likeness.

    `name` is `"<published split>/<n>_<condition>"`, and `condition` A (age-related macular degeneration), D (diabetic
    retinopathy), G (glaucoma) or N (normal).

    Args:
        source (`str` or `Path`): See [`load_vessels`], as for all others.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` when streaming.

    Raises:
        ValueError: See [`load_vessels`]; also if the source has other conditions than FIVES.
    """
    sides = load_vessels(
        source,
        split=split,
        seed=seed,
        validation_fraction=validation_fraction,
        working_size=working_size,
        revision=revision,
        streaming=streaming,
        cache_dir=cache_dir,
        synthetic_counts=synthetic_counts,
    )
    names = next(iter(sides.values())).features["condition"].names
    if names != list(CONDITIONS):
        raise ValueError(f"{source} has the conditions {', '.join(names)}, so it is not FIVES: use load_vessels.")
    return sides


def _load_synthetic(counts, seed, size, cache) -> tuple[Dataset, list[str]]:
    if len(counts) != 3 or any(count < 0 for count in counts) or counts[0] < 1:
        raise ValueError(
            f"synthetic_counts are how many images train (at least 1), validation and test get; got {counts}."
        )
    parts, start = [], 0
    for count in counts:
        if count:
            kwargs = {"size": size, "seed": seed, "start": start, "count": count, "version": _SYNTHETIC_VERSION}
            features = row_features(CONDITIONS, fingerprints=True)
            parts.append(_generate(synthetic_images, kwargs, features, cache / "reg4pru_synthetic"))
        start += count
    published = [side for side, count in zip(SIDES, counts, strict=True) for _ in range(count)]
    return concatenate_datasets(parts), published


def _load_files(images: list[Image], split, seed, validation_fraction, reading, cache) -> tuple[Dataset, list[str]]:
    names = [image.name for image in images]
    conditions = [image.condition for image in images]
    published = [image.published for image in images]
    # A split that cannot be made is refused before gigabytes are decoded; twins are known only afterwards.
    apart = range(len(images))
    split_images(names, conditions, published, apart, split, seed, validation_fraction)
    features = row_features(
        condition_names(conditions),
        field_of_view=images[0].field_of_view_path is not None,
        quality=images[0].quality is not None,
        fingerprints=True,
    )
    kwargs = {"images": tuple(images), "version": _FILES_VERSION, **reading}
    return _generate(read_images, kwargs, features, cache / "reg4pru_folder"), published


def _load_stored(opened: DatasetDict, source, condition_pattern, reading, cache) -> tuple[Dataset, list[str]]:
    columns = _same_columns(opened, source)
    labels, names = read_labels(opened, columns, condition_pattern)
    features = row_features(
        names, field_of_view=columns.field_of_view is not None, quality=columns.quality, fingerprints=True
    )
    parts = []
    for side, rows in opened.items():
        members = tuple(label for label in labels if label.side == side)
        kwargs = {"rows": rows, "columns": columns, "labels": members, "version": _STORED_VERSION, **reading}
        parts.append(_generate(read_rows, kwargs, features, cache / "reg4pru_stored"))
    return concatenate_datasets(parts), [label.published for label in labels]


def _same_columns(opened, source):
    columns = {find_columns(rows, f"{source}: {side}") for side, rows in opened.items()}
    if len(columns) > 1:
        raise ValueError(f"The sides of {source} have different columns: {', '.join(map(str, columns))}.")
    return columns.pop()


def _generate(generator, kwargs, features, cache) -> Dataset:
    """
    Rows of a generator, written once: `datasets` locks the cache, and renames it only when it is complete. Other
    versions of the libraries draw and reduce otherwise, so each has rows of its own.
    """
    libraries = "_".join(f"{name}-{version(name)}" for name in ("numpy", "pillow", "scikit-image", "scipy"))
    try:
        return Dataset.from_generator(
            generator, features=features, gen_kwargs=kwargs, cache_dir=str(cache / libraries), writer_batch_size=16
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _split(rows: Dataset, published, source, split, seed, validation_fraction) -> DatasetDict:
    names = rows["name"][:]
    _check_unique(names)
    images, masks = (rows[fingerprint][:] for fingerprint in FINGERPRINTS)
    if not any(masks):
        check_foreground(rows.with_format("numpy", columns=["mask"])["mask"], str(source))
    groups = twin_groups(images, masks)
    members = split_images(names, rows["condition"][:], published, groups, split, seed, validation_fraction)
    return DatasetDict({side: rows.select(indices) for side, indices in members.items()})


def _check_unique(names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"Names must be unique, but these are used more than once: {', '.join(repeated[:10])}.")


def _stream(
    opened, source, revision, condition_pattern, split, seed, validation_fraction, reading
) -> IterableDatasetDict:
    """Split by name alone: only the columns of names and conditions are read ahead, not the pixels."""
    columns = _same_columns(opened, source)
    if columns.name is None:
        raise ValueError(f"{source} has no column of names to be split by: load it without streaming.")
    labels, conditions = read_labels(_texts(opened, source, revision, columns), columns, condition_pattern)
    names = [label.name for label in labels]
    _check_unique(names)
    logger.warning("Streaming %s: pixels are not compared, so twins are not looked for.", source)
    members = split_images(
        names,
        [label.condition for label in labels],
        [label.published for label in labels],
        range(len(labels)),
        split,
        seed,
        validation_fraction,
    )
    features = row_features(conditions, field_of_view=columns.field_of_view is not None, quality=columns.quality)
    result = {}
    for side, indices in members.items():
        parts = []
        for origin in dict.fromkeys(labels[i].side for i in indices):
            wanted = {labels[i].stored_name: labels[i] for i in indices if labels[i].side == origin}
            part = undecoded(opened[origin], columns).filter(
                lambda name, wanted=wanted: str(name) in wanted, input_columns=columns.name
            )
            parts.append(part.map(_streamed_row, fn_kwargs={"columns": columns, "wanted": wanted, **reading}))
        rows = concatenate_datasets(parts).select_columns(list(features))
        result[side] = _counted(rows.cast(features), side, len(indices))
    return IterableDatasetDict(result)


def _texts(opened, source, revision, columns) -> dict[str, IterableDataset]:
    """The columns of names and conditions; of Parquet files nothing else is downloaded."""
    keys = [column for column in (columns.name, columns.condition) if column is not None]
    files = parquet_files(Path(source))
    if files:
        return load_dataset("parquet", data_files=files, columns=keys, streaming=True)
    if all(rows.info.builder_name == "parquet" for rows in opened.values()):
        return load_dataset(str(source), revision=revision, columns=keys, streaming=True)
    return opened


def _streamed_row(row, columns, wanted, working_size, vessel_labels) -> dict:
    return prepare_row(row, columns, wanted[str(row[columns.name])], working_size, vessel_labels)


def _counted(rows: IterableDataset, side: str, count: int) -> IterableDataset:
    """Note the number of rows, which a stream cannot be asked for."""
    splits = SplitDict()
    splits.add(SplitInfo(name=side, num_examples=count))
    rows.info.splits = splits
    return rows
