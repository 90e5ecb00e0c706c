"""The weights that a speed.json was measured with: training may have replaced those beside it since."""

import hashlib
from pathlib import Path

from modeling_reg4pru.speed_budget import SPEED_FILE


def fingerprint_weights(folder: Path) -> str:
    """Of the bytes of all weight files of a checkpoint."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def check_tuned_weights(folder: Path, speed: dict) -> None:
    """
    Args:
        folder (`Path`): The checkpoint.
        speed (`dict`): Its `speed.json`.

    Raises:
        `ValueError`: if the checkpoint holds other weights than those that were measured.
    """
    if speed.get("weights") != fingerprint_weights(folder):
        raise ValueError(
            f"--model_name_or_path is {folder}: its {SPEED_FILE} was measured with other weights than it holds now. "
            f"`reg4pru tune` with --overwrite measures anew; or remove {SPEED_FILE}."
        )
