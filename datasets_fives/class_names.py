"""The names of the classes: of rows, and in the files that lie beside label maps."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from datasets import Dataset, IterableDataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from .label_maps import LabelFormat, read_label_format

logger = logging.getLogger(__name__)

BINARY = ("background", "vessel")
CLASS_FILES = ("id2label.json", "classes.json", "classes.txt")


def class_names(rows: Dataset | IterableDataset) -> list[str]:
    """
    Names of the classes of a data set, by index.

    Args:
        rows (`Dataset` or `IterableDataset`): As [`~datasets_fives.load_segmentation`] returns them.

    Returns:
        `list[str]`: `["background", "vessel"]` where the rows name none.
    """
    feature = (rows.features or {}).get("classes")
    return list(BINARY) if feature is None else list(feature.feature.names)


def read_class_file(path: str | Path) -> list[str] | dict:
    """
    Read a file of class names.

    Args:
        path (`str` or `Path`): A text file, one name a line, or a JSON or YAML file of what
            [`~datasets_fives.label_maps.read_label_format`] takes.

    Raises:
        ValueError: If there is no such file, or it holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may write a byte order mark
    except OSError as error:
        raise ValueError(f"The class names of {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of class names: {error}.") from error
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, (list, dict)):
        raise ValueError(f"{path} must hold class names, but holds {type(content).__name__}.")
    return content


def find_labels(
    source: str | Path | Mapping,
    stated: Mapping,
    classes: Sequence[str] | Mapping | str | Path | None,
    ignore_value: int | Sequence[int] | None,
    reduce_labels: bool | None,
    vessel_labels: Sequence[int] | None = None,
    revision: str | None = None,
) -> LabelFormat | None:
    """
    What the label maps of a data set mean: what is asked for, else what the data set says.

    Args:
        source (`str`, `Path` or `Mapping`): See [`~datasets_fives.load_segmentation`].
        stated (`Mapping`): What its columns, or the mapping, say; see [`~datasets_fives.features.Listing`].
        classes (`Sequence[str]`, `Mapping`, `str` or `Path`, *optional*): See
            [`~datasets_fives.load_segmentation`], as the arguments below.
        ignore_value (`int` or `Sequence[int]`, *optional*): Likewise.
        reduce_labels (`bool`, *optional*): Likewise.
        vessel_labels (`Sequence[int]`, *optional*): Likewise; names that the data set has are those of labels which
            these make one of, so they are not looked for.
        revision (`str`, *optional*): Likewise.

    Returns:
        [`LabelFormat`], or `None` if no class has a name: these are vessel masks.

    Raises:
        ValueError: If these contradict each other or are no names, values and colours, or if several files name
            classes, which need not agree.
    """
    if classes is None:
        classes = _find_classes(source, stated, revision) if vessel_labels is None else ()
    ignore_value = stated.get("ignore_value") if ignore_value is None else ignore_value
    reduce_labels = bool(stated.get("reduce_labels") if reduce_labels is None else reduce_labels)
    if classes == ():
        if ignore_value is not None or reduce_labels:
            raise ValueError(
                f"ignore_value and reduce_labels are for label maps, but {source} names no classes: give classes, "
                f"or a file {', '.join(CLASS_FILES)} beside the images."
            )
        return None
    names = read_class_file(classes) if isinstance(classes, (str, Path)) else classes
    try:
        labels = read_label_format(names, ignore_value, reduce_labels)
    except ValueError as error:
        raise ValueError(f"Classes of {source if names is classes else classes}: {error}") from error
    if vessel_labels is not None and not labels.is_plain_binary:
        raise ValueError(f"vessel_labels make one class of several, but there are {len(labels.names)} classes.")
    return labels


def _find_classes(
    source: str | Path | Mapping, stated: Mapping, revision: str | None
) -> Sequence[str] | Mapping | str | Path:
    """The names that a data set itself has, a file of them, or `()`."""
    if stated.get("classes") is not None or isinstance(source, Mapping) or source == "synthetic":
        return stated.get("classes", ())
    if Path(source).exists():
        found = [path for name in CLASS_FILES if (path := Path(source) / name).is_file()]
    else:
        found = [path for name in CLASS_FILES if (path := _download(str(source), name, revision)) is not None]
    if len(found) > 1:
        raise ValueError(f"{source} has {' and '.join(path.name for path in found)}: which names the classes?")
    return found[0] if found else ()


def _download(repo_id: str, name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    except HfHubHTTPError as error:
        logger.warning("Whether %s has %s could not be seen (%s).", repo_id, name, error)
        return None


def check_occurrence(found: Sequence[Sequence[int]], names: Sequence[str], where: str, maps: Sequence[str]) -> None:
    """
    Say which classes no label map shows, and refuse a data set from which nothing can be learnt.

    Args:
        found (`Sequence[Sequence[int]]`): The classes of each label map.
        names (`Sequence[str]`): Names of the classes.
        where (`str`): What messages call the data set.
        maps (`Sequence[str]`): Names of the label maps.

    Raises:
        ValueError: If all label maps together show one class, or none; of two classes, if none shows the second.
    """
    counts = Counter(label for classes in found for label in classes)
    absent = [name for label, name in enumerate(names) if label not in counts]
    if len(counts) < 2 and (len(names) > 2 or 1 not in counts):
        shown = f"only {names[next(iter(counts))]!r}" if counts else "ignored pixels only"
        raise ValueError(f"Nothing can be learned from {where}: its {len(found)} label maps have {shown}.")
    if absent:
        logger.warning(
            "%d of %d classes occur in no label map of %s: %s", len(absent), len(names), where, ", ".join(absent)
        )
    if empty := [name for name, classes in zip(maps, found, strict=True) if not classes]:
        logger.warning("%d of %d label maps are ignored as a whole: %s", len(empty), len(maps), ", ".join(empty[:10]))
