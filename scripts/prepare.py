"""
Turn the published FIVES archive into a data set for the Hub: Parquet shards and a card whose numbers are computed.

The published splits are kept whole; `load_fives` takes the validation part out of train. A push that failed is
repeated with the same command, which uses what is prepared already.

Example:
    reg4pru prepare --fives_dir FIVES --output_dir prepared
    reg4pru prepare --fives_dir FIVES --output_dir prepared --push_to_hub --hub_dataset_id user/fives
"""

import logging
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .common.arguments import DatasetUploadArguments
from .common.cli import CommandParser, set_up_logging

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareArguments(DatasetUploadArguments):
    """What is prepared, and where it goes."""

    _argument_group_name = "data set"

    fives_dir: str = field(
        metadata={"help": "Folder of the published archive: <split>/Original, <split>/Ground truth."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the data set is written; may be left out with --push_to_hub."}
    )
    images_per_shard: int = field(default=100, metadata={"help": "Images in a Parquet file."})


def main(argv: list[str] | None = None) -> None:
    """Prepare, and push, as the command line says."""
    parser = CommandParser(PrepareArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    if arguments.output_dir is None and not arguments.push_to_hub:
        parser.error("give --output_dir, --push_to_hub or both")
    if arguments.push_to_hub and not arguments.hub_dataset_id:
        parser.error("--push_to_hub needs --hub_dataset_id")
    if arguments.images_per_shard < 1:
        parser.error(f"--images_per_shard is {arguments.images_per_shard}: it must be at least 1")
    set_up_logging()
    from .common.output_checks import check_writable
    from .hub.fives_dataset import PREPARED, TAG, prepare
    from .hub.transfer import TransferError, check_target, push_folder

    repo_id = arguments.hub_dataset_id or "user/fives"
    private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
    with tempfile.TemporaryDirectory() as scratch:
        output_dir = Path(arguments.output_dir or Path(scratch) / "prepared")
        try:
            # Written beside its place.
            check_writable(output_dir.absolute().parent if output_dir.is_dir() else output_dir, "--output_dir")
            if arguments.push_to_hub:  # refused before gigabytes are read
                check_target(repo_id, "dataset", private=private, overwrite=overwrite, tag=TAG)
            prepare(Path(arguments.fives_dir), output_dir, repo_id, arguments.images_per_shard)
            if arguments.push_to_hub:
                commit = push_folder(
                    output_dir,
                    repo_id,
                    repo_type="dataset",
                    commit_message="Upload FIVES",
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
