"""
Turn images with masks or label maps, or the published FIVES archive, into a data set for the Hub: Parquet shards and
a card with statistics.

Published splits are kept; where there is no validation part, other commands take one out of train. After a failed
push, run the same command again: it reuses what has been prepared.

Example:
    reg4pru prepare --dataset camvid --classes classes.txt --ignore_value 11 --output_dir prepared
    reg4pru prepare --fives_dir FIVES --output_dir prepared --push_to_hub --hub_dataset_id user/fives
"""

import logging
import re
import sys
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

from .common.arguments import DatasetArguments, DatasetUploadArguments
from .common.cli import CommandParser, set_up_logging

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareArguments(DatasetUploadArguments, DatasetArguments):
    """What is prepared, and where it goes."""

    _argument_group_name = "data set"

    dataset: str | None = field(
        default=None, metadata={"help": "Folder, YAML file of folders, saved DatasetDict or Hub id."}
    )
    fives_dir: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --dataset: folder of the FIVES archive as published, <split>/Original "
            "and <split>/Ground truth."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of a drawn split."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the images, by its name on the Hub, such as cc-by-4.0."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder to write the data set to; optional with --push_to_hub."}
    )
    images_per_shard: int = field(default=100, metadata={"help": "Images per Parquet file."})


def _short_name(dataset: str) -> str:
    """A name for the card: that of a folder or file, or of a repository, in the letters that the Hub allows."""
    return re.sub(r"[^\w.-]+", "-", Path(dataset).resolve().stem).strip("-.") or "images"


def _given(arguments: PrepareArguments) -> list[str]:
    """The flags of --dataset that are not at their defaults."""
    default = PrepareArguments()
    names = ["seed", "license", *(declared.name for declared in fields(DatasetArguments))]
    return [f"--{name}" for name in names if getattr(arguments, name) != getattr(default, name)]


def _prepare(arguments: PrepareArguments, output_dir: Path, repo_id: str) -> None:
    from .common.dataset_loading import load_sides
    from .hub.fives_dataset import prepare
    from .hub.segmentation_dataset import prepare_sides

    if arguments.fives_dir:
        prepare(Path(arguments.fives_dir), output_dir, repo_id, arguments.images_per_shard)
        return
    sides = load_sides(arguments, arguments.seed, validation_fraction=0)
    prepare_sides(sides, output_dir, repo_id, arguments.license, arguments.images_per_shard)


def main(argv: list[str] | None = None) -> None:
    """Prepare, and push, as the command line says."""
    parser = CommandParser(PrepareArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    if (arguments.dataset is None) == (arguments.fives_dir is None):
        parser.error("give --dataset or --fives_dir, and not both")
    if arguments.fives_dir and (unused := _given(arguments)):
        parser.error(f"--fives_dir prepares the archive as it is, so {', '.join(unused)} would have no effect")
    if arguments.output_dir is None and not arguments.push_to_hub:
        parser.error("give --output_dir, --push_to_hub or both")
    if arguments.push_to_hub and not arguments.hub_dataset_id:
        parser.error("--push_to_hub needs --hub_dataset_id")
    if arguments.images_per_shard < 1:
        parser.error(f"--images_per_shard is {arguments.images_per_shard}: it must be at least 1")
    set_up_logging()
    from .common.output_checks import check_writable
    from .hub.dataset_folder import PREPARED, TAG
    from .hub.transfer import TransferError, check_target, push_folder

    repo_id = arguments.hub_dataset_id or f"user/{'fives' if arguments.fives_dir else _short_name(arguments.dataset)}"
    private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
    with tempfile.TemporaryDirectory() as scratch:
        output_dir = Path(arguments.output_dir or Path(scratch) / "prepared")
        try:
            # Written beside its place.
            check_writable(output_dir.absolute().parent if output_dir.is_dir() else output_dir, "--output_dir")
            if arguments.push_to_hub:  # refused before gigabytes are read
                check_target(repo_id, "dataset", private=private, overwrite=overwrite, tag=TAG)
            _prepare(arguments, output_dir, repo_id)
            if arguments.push_to_hub:
                commit = push_folder(
                    output_dir,
                    repo_id,
                    repo_type="dataset",
                    commit_message="Upload FIVES" if arguments.fives_dir else "Upload images and label maps",
                    private=private,
                    overwrite=overwrite,
                    tag=TAG,
                    ignore=(PREPARED,),
                )
                logger.info("Uploaded to %s, commit %s.", repo_id, commit)
        except ValueError as error:
            parser.error(str(error))
        except TransferError as error:
            sys.exit(str(error))
    if arguments.output_dir is not None:
        logger.info("Prepared in %s.", arguments.output_dir)
