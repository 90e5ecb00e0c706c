"""load_fives: one call for a folder, a Hub repository, a saved data set or synthetic photographs."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    SplitDict,
    SplitInfo,
    Value,
    concatenate_datasets,
    config,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from .folder import CONDITIONS, is_published_layout, list_photographs, raise_problems, read_photographs
from .pixels import binary_mask, encode_png, fingerprint_image, fingerprint_mask, resize_image, resize_mask
from .splits import SIDES, check_split_request, split_photographs, twin_groups
from .synthetic import synthetic_photographs

logger = logging.getLogger(__name__)

FEATURES = Features(
    {
        "image": Image(mode="RGB"),
        "mask": Image(mode="L"),
        "name": Value("string"),
        "condition": ClassLabel(names=list(CONDITIONS)),
    }
)
_HASHED = Features({**FEATURES, "image_hash": Value("string"), "mask_hash": Value("string")})

# Part of every cache key: raise it when the rows change that the same input gives.
_FOLDER_VERSION = 1
_STORED_VERSION = 1
_SYNTHETIC_VERSION = 2
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SOURCES = (
    'a folder in the published layout ("<split>/Original/*.png", "<split>/Ground truth/*.png"), a directory written '
    'by DatasetDict.save_to_disk, a folder with "data/<split>-*.parquet", a Hub id "user/name", or "synthetic"'
)


def load_fives(
    source: str | Path,
    *,
    split: str | Mapping[str, list[str]] = "official",
    seed: int = 0,
    validation_fraction: float = 0.1,
    image_size: int | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    synthetic_counts: tuple[int, int, int] = (64, 8, 16),
) -> DatasetDict | IterableDatasetDict:
    """
    Load FIVES (Jin et al., Scientific Data 2022, doi:10.1038/s41597-022-01564-3) or something of its form.

    The rows have `image` (RGB), `mask` (grey, {0, 1}, 1 is vessel), `name` (`"<published split>/<n>_<condition>"`)
    and `condition` (A age-related macular degeneration, D diabetic retinopathy, G glaucoma, N normal). Photographs
    with the same pixels or the same mask (twins) never land on two sides.

    Args:
        source (`str` or `Path`):
            A folder in the published layout (train, test or both), a directory written by
            `DatasetDict.save_to_disk`, a folder with `data/<split>-*.parquet`, a Hub id `"user/name"`, or
            `"synthetic"`.
        split (`str` or `Mapping[str, list[str]]`, *optional*, defaults to `"official"`):
            `"official"`: train and test as published, a validation part taken out of train, stratified by condition,
            unless the source has one already; a training photograph whose twin tests is left out with a warning.
            `"resplit"`: everything split anew, 70:20:10 for train, test and validation. `"sample"`: the split of the
            14-photograph sample, [`~datasets_fives.splits.SAMPLE_SPLIT`]. Or the names of each side.
        seed (`int`, *optional*, defaults to 0): Seed of the draws and of the synthetic photographs.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            Fraction of train that validates under `"official"`; 0 for none. Not for synthetic photographs, whose
            counts say it.
        image_size (`int`, *optional*):
            Side that photographs (antialiased) and masks (area average, threshold one half) are resized to. By
            default they keep their size; synthetic photographs are drawn at 256.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`, *optional*, defaults to `False`):
            Return iterable data sets. From the Hub and from Parquet nothing is downloaded ahead, so twins cannot be
            looked for: names alone decide. `info.splits[side].num_examples` tells how many rows a side has.
        cache_dir (`str` or `Path`, *optional*): Where prepared rows are kept; default the cache of `datasets`.
        synthetic_counts (`tuple[int, int, int]`, *optional*, defaults to `(64, 8, 16)`):
            Number of synthetic photographs for train, validation and test.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` when streaming, with `train`, `validation` and `test`, less the empty
        ones.

    Raises:
        ValueError: If an argument is wrong, the source is none of the above, its files are broken, or the split
            cannot be made.
    """
    check_split_request(split, validation_fraction)
    if image_size is not None and image_size < 16:
        raise ValueError(f"image_size must be at least 16, got {image_size}.")
    cache = Path(cache_dir) if cache_dir is not None else Path(config.HF_DATASETS_CACHE)

    if source == "synthetic":
        sides = _load_synthetic(synthetic_counts, seed, image_size or 256, cache)
        validation_fraction = 0.0  # the counts say how many validate
    elif Path(source).is_dir() and is_published_layout(Path(source)):
        sides = _load_folder(Path(source), split, seed, validation_fraction, image_size, cache)
    else:
        opened = _open(source, revision, streaming, cache_dir)
        if streaming and isinstance(opened, IterableDatasetDict):
            return _stream(opened, source, revision, split, seed, validation_fraction, image_size)
        kwargs = {"image_size": image_size, "version": _STORED_VERSION}
        sides = {
            side: _generate(_read_rows, kwargs | {"rows": rows}, _HASHED, cache / "reg4pru_stored")
            for side, rows in opened.items()
        }
    result = _split(sides, split, seed, validation_fraction)
    if streaming:
        return IterableDatasetDict(
            {side: _counted(rows.to_iterable_dataset(), side, len(rows)) for side, rows in result.items()}
        )
    return result


def _load_synthetic(counts, seed, size, cache) -> dict[str, Dataset]:
    if len(counts) != 3 or any(count < 0 for count in counts) or counts[0] < 1:
        raise ValueError(
            f"synthetic_counts are how many photographs train (at least 1), validation and test get; got {counts}."
        )
    sides, start = {}, 0
    for side, count in zip(SIDES, counts, strict=True):
        if count:
            kwargs = {"size": size, "seed": seed, "start": start, "count": count, "version": _SYNTHETIC_VERSION}
            sides[side] = _generate(synthetic_photographs, kwargs, FEATURES, cache / "reg4pru_synthetic")
        start += count
    return sides


def _load_folder(folder, split, seed, validation_fraction, image_size, cache) -> dict[str, Dataset]:
    photographs = list_photographs(folder.resolve())
    # A split that cannot be made is refused before gigabytes are decoded; twins are known only afterwards.
    split_photographs(
        [p.name for p in photographs],
        [CONDITIONS.index(p.condition) for p in photographs],
        [p.published for p in photographs],
        range(len(photographs)),
        split,
        seed,
        validation_fraction,
    )
    kwargs = {"photographs": tuple(photographs), "image_size": image_size, "version": _FOLDER_VERSION}
    rows = _generate(read_photographs, kwargs, _HASHED, cache / "reg4pru_folder")
    members = {side: [i for i, p in enumerate(photographs) if p.published == side] for side in ("train", "test")}
    return {side: rows.select(indices) for side, indices in members.items() if indices}


def _open(source, revision, streaming, cache_dir) -> DatasetDict | IterableDatasetDict:
    """Open what is stored as a data set already: saved to disk, Parquet, or on the Hub."""
    folder, kwargs = Path(source), {"streaming": streaming, "cache_dir": cache_dir and str(cache_dir)}
    if (folder / "dataset_dict.json").is_file():
        sides = load_from_disk(folder)
    elif files := _parquet_files(folder):
        sides = load_dataset("parquet", data_files=files, **kwargs)
    elif folder.exists() or not _HUB_ID.fullmatch(str(source)):
        raise ValueError(f"{str(source)!r} is no data set that load_fives knows. It takes {_SOURCES}.")
    else:
        try:
            sides = load_dataset(str(source), revision=revision, **kwargs)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"{str(source)!r} is no folder here and was not found on the Hub ({error}). It takes {_SOURCES}."
            ) from error
    unknown = sorted(set(sides) - set(SIDES))
    if unknown:
        raise ValueError(f"{source} has the splits {', '.join(sides)}; known are {', '.join(SIDES)}.")
    for side, rows in sides.items():
        columns = rows.column_names or list(next(iter(rows)))
        missing = [column for column in FEATURES if column not in columns]
        if missing:
            raise ValueError(f"{source}: {side} has the columns {', '.join(columns)}; missing: {', '.join(missing)}.")
    return sides


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    found = {side: sorted(str(path) for path in (folder / "data").glob(f"{side}-*.parquet")) for side in SIDES}
    return {side: paths for side, paths in found.items() if paths}


def _read_rows(rows: Dataset, image_size: int | None, version: int) -> Iterator[dict]:
    """Check, and if asked for resize, rows of a stored data set; the counterpart of `read_photographs`."""
    problems = []
    # Decoded here, so that a broken file is reported with its name.
    for row in (
        rows.select_columns(list(FEATURES))
        .cast_column("image", Image(decode=False))
        .cast_column("mask", Image(decode=False))
    ):
        try:
            ready = _prepare(row, image_size)
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{row['name']}: {error}")
            continue
        if not problems:
            yield ready
    raise_problems("the data set", problems)


def _prepare(row: dict, image_size: int | None) -> dict:
    image = FEATURES["image"].decode_example(row["image"])
    mask = binary_mask(Image().decode_example(row["mask"]))
    if image.size != mask.shape[::-1]:
        raise ValueError(f"photograph is {image.size[0]}x{image.size[1]} but mask is {mask.shape[1]}x{mask.shape[0]}")
    hashes = {"image_hash": fingerprint_image(image), "mask_hash": fingerprint_mask(mask)}
    if image_size is not None:
        resized = {"image": encode_png(resize_image(image, image_size))}
        return row | hashes | resized | {"mask": encode_png(resize_mask(mask, image_size))}
    return row | hashes | {"mask": encode_png(mask)}


def _generate(generator, kwargs, features, cache) -> Dataset:
    """Rows of a generator, written once: `datasets` locks the cache, and renames it only when it is complete."""
    try:
        return Dataset.from_generator(
            generator, features=features, gen_kwargs=kwargs, cache_dir=str(cache), writer_batch_size=16
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _split(sides: dict[str, Dataset], split, seed, validation_fraction) -> DatasetDict:
    rows = concatenate_datasets(list(sides.values()))
    names = rows["name"][:]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"Names must be unique, but these are used more than once: {', '.join(repeated[:10])}.")
    published = [side for side, part in sides.items() for _ in range(len(part))]
    groups = list(range(len(rows)))
    if "image_hash" in rows.column_names:
        groups = twin_groups(rows["image_hash"][:], rows["mask_hash"][:])
        rows = rows.remove_columns(["image_hash", "mask_hash"])
    members = split_photographs(names, rows["condition"][:], published, groups, split, seed, validation_fraction)
    return DatasetDict({side: rows.select(indices) for side, indices in members.items()})


def _stream(sides, source, revision, split, seed, validation_fraction, image_size) -> IterableDatasetDict:
    """Split by name alone: only the columns of names and conditions are read ahead, not the pixels."""
    files = _parquet_files(Path(source))
    keys = ["name", "condition"]
    kwargs = {"data_files": files} if files else {"revision": revision}
    table = load_dataset("parquet" if files else str(source), columns=keys, streaming=True, **kwargs)
    labels = [
        (side, row["name"], row["condition"]) for side, part in table.items() for row in part.select_columns(keys)
    ]
    published, names, conditions = map(list, zip(*labels, strict=True))
    logger.warning("Streaming %s: pixels are not compared, so twins are not looked for.", source)
    members = split_photographs(names, conditions, published, range(len(names)), split, seed, validation_fraction)
    result = {}
    for side, indices in members.items():
        wanted = {names[i] for i in indices}
        parts = [
            sides[origin].filter(lambda name, wanted=wanted: name in wanted, input_columns="name")
            for origin in dict.fromkeys(published[i] for i in indices)
        ]
        rows = concatenate_datasets(parts).select_columns(list(FEATURES))
        rows = rows.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
        rows = rows.map(_prepare, fn_kwargs={"image_size": image_size})
        result[side] = _counted(rows.select_columns(list(FEATURES)).cast(FEATURES), side, len(indices))
    return IterableDatasetDict(result)


def _counted(rows: IterableDataset, side: str, count: int) -> IterableDataset:
    """Note the number of rows, which a stream cannot be asked for."""
    splits = SplitDict()
    splits.add(SplitInfo(name=side, num_examples=count))
    rows.info.splits = splits
    return rows
