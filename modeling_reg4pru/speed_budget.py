"""Keep rates for a budget in milliseconds, from what `reg4pru tune` measured and left beside the checkpoint."""

import hashlib
import json
import os
import platform
from pathlib import Path

import torch
from transformers import logging
from transformers.utils import cached_file

logger = logging.get_logger(__name__)

SPEED_FILE = "speed.json"
# Arguments of `from_pretrained` that locate a checkpoint. No token: a model that is pickled must not carry one.
_PLACE = ("cache_dir", "subfolder", "local_files_only")


def processor_name(device: torch.device | str) -> str:
    """`NVIDIA H200` or the like; for a CPU its model, where the system tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe_machine(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | int | None]:
    """What measured times hold for: `device`, `dtype`, and on a CPU `num_threads`."""
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else None
    return {"device": processor_name(device), "dtype": str(dtype).removeprefix("torch."), "num_threads": threads}


def fingerprint_weights(folder: str | os.PathLike) -> str:
    """
    Fingerprint of the bytes of all weight files of a checkpoint: what was measured belongs to the weights it was
    measured with.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.

    Raises:
        `ValueError`: If it has none.
    """
    digest, folder = hashlib.blake2b(digest_size=16), Path(folder)
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not paths:
        raise ValueError(f"{folder} has no file of weights (*.safetensors, pytorch_model*.bin).")
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def fingerprint_tensors(weights: dict[str, torch.Tensor]) -> str:
    """Fingerprint of weights in memory, by their names: the same whatever files they are saved in."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_tuned_weights(folder: str | os.PathLike, speed: dict) -> None:
    """
    Args:
        folder (`str` or `os.PathLike`): A checkpoint.
        speed (`dict`): Its `speed.json`.

    Raises:
        `ValueError`: if the checkpoint holds other weights than those that were measured.
    """
    if speed.get("weights") != fingerprint_weights(folder):
        raise ValueError(
            f"{folder}: its {SPEED_FILE} was measured with other weights than it holds now. `reg4pru tune` with "
            f"--overwrite measures anew; or remove {SPEED_FILE}."
        )


def per_image(speed: dict) -> dict:
    """
    What `speed.json` holds, with the times of an image.

    Early ones hold those of a tile, each with its own budget: an image takes that as often as it had tiles.

    Args:
        speed (`dict`): As it was read.

    Raises:
        `ValueError` or `KeyError`: if it is no such file.
    """
    if "frame_size" in speed:
        return speed
    (tiles,) = [value for name, value in speed.items() if name.startswith("tiles_per_")]  # its name has changed, too
    candidates = []
    for row in speed["candidates"]:
        scaled = {name: tiles * row[name] for name in ("milliseconds", "gflops") if name in row}
        if "milliseconds_quartiles" in row:
            scaled["milliseconds_quartiles"] = [tiles * quartile for quartile in row["milliseconds_quartiles"]]
        candidates.append({**row, **scaled, "allocation": "tile"})
    checkpoint = {**speed.get("checkpoint", {}), "allocation": "tile"}
    return {**speed, "frame_size": None, "candidates": candidates, "checkpoint": checkpoint}


def choose_candidate(candidates: list[dict], milliseconds: float) -> dict:
    """
    The most accurate candidate within a budget.

    Args:
        candidates (`list[dict]`): What was measured, with `milliseconds` (of an image) and what [`accuracy`] reads.
        milliseconds (`float`): What an image may take.

    Raises:
        `ValueError`: if the budget is not positive, or below the fastest candidate.
    """
    if not milliseconds > 0:
        raise ValueError(f"The budget is {milliseconds} milliseconds: it must be above 0.")
    within = [row for row in candidates if row["milliseconds"] <= milliseconds]
    if not within:
        fastest = min(candidates, key=lambda row: row["milliseconds"])
        raise ValueError(
            f"The budget is {milliseconds:g} milliseconds, but the fastest that was measured takes "
            f"{fastest['milliseconds']:.1f}: keep rates {fastest['keep_rates']}, `reactivation_layer` "
            f"{fastest['reactivation_layer']}, `selection_pool` {fastest['selection_pool']!r}, `allocation` "
            f"{fastest['allocation']!r}."
        )
    return max(within, key=lambda row: (accuracy(row), -row["milliseconds"]))


def reachable_candidates(speed: dict, dtype: str) -> list[dict]:
    """
    What a loaded model can be set to: settings measured in PyTorch in its data type, or, if there are none, in that
    of the checkpoint; with the tiles that the image processor of the checkpoint cuts.

    Args:
        speed (`dict`): `speed.json`. Early ones know one data type and one overlap of tiles only.
        dtype (`str`): Data type of the model.
    """
    overlap = speed.get("checkpoint", {}).get("tile_overlap")
    rows = [row for row in speed["candidates"] if row.get("tile_overlap", overlap) == overlap]
    measured = speed["machine"]["dtype"]
    return [row for row in rows if row.get("engine") == dtype] or [
        row for row in rows if row.get("engine", measured) == measured
    ]


def accuracy(row: dict) -> float:
    """By what a candidate is chosen: average precision of two classes, mean IoU of more."""
    return row["mean_iou"] if "mean_iou" in row else row["average_precision"]


class SpeedBudgetMixin:
    """Keep rates for a budget, from the `speed.json` of the checkpoint that the model was loaded from."""

    _source: tuple[str, dict] | None = None

    def keep_rates_for(self, milliseconds: float) -> list[float]:
        """
        The most accurate keep rates that were measured within a budget, for the reactivation layer, the selection
        pool and the allocation that the model has now; [`~SpeedBudgetMixin.set_speed_budget`] chooses these, too. A
        warning says so if the times are those of another device, data type or number of threads than here.

        Args:
            milliseconds (`float`):
                What an image of the size that was measured may take, with all of its tiles.

        Returns:
            `list[float]`: one keep rate a stage, for [`set_keep_rates`] or a single call.

        Raises:
            `ValueError`: If the checkpoint has no `speed.json`, nothing was measured with these settings, or the
                budget is below the fastest that was.
        """
        own = (self.config.reactivation_layer, self.config.selection_pool, self.config.allocation)
        fitting = [
            row
            for row in self._candidates()
            # Unpruned, these settings have no effect.
            if min(row["keep_rates"]) == 1
            or (row["reactivation_layer"], row["selection_pool"], row["allocation"]) == own
        ]
        if not any(min(row["keep_rates"]) < 1 for row in fitting):
            raise ValueError(
                f"Nothing was measured with `reactivation_layer` {own[0]}, `selection_pool` {own[1]!r} and "
                f"`allocation` {own[2]!r}: tune again with these, or let `set_speed_budget` choose among what was "
                "measured."
            )
        return list(choose_candidate(fitting, milliseconds)["keep_rates"])

    def set_speed_budget(self, milliseconds: float) -> dict:
        """
        Set keep rates, reactivation layer, selection pool and allocation to the most accurate ones within a budget;
        see [`~SpeedBudgetMixin.keep_rates_for`]. The overlap of tiles is that of the checkpoint's image processor, and
        the data type that of the model: `reg4pru tune` says what others would give.

        Args:
            milliseconds (`float`): What an image may take.

        Returns:
            `dict`: what was measured with these settings: `milliseconds`, `average_precision`, `dice`, ...; of more
            than two classes `mean_iou`, ...
        """
        chosen = choose_candidate(self._candidates(), milliseconds)
        self.set_keep_rates(chosen["keep_rates"])
        self.config.reactivation_layer = chosen["reactivation_layer"]
        self.config.selection_pool = chosen["selection_pool"]
        self.config.allocation = chosen["allocation"]
        return chosen

    def _candidates(self) -> list[dict]:
        return reachable_candidates(self.read_speed(), str(self.dtype).removeprefix("torch."))

    def _remember_source(self, name: str | os.PathLike | None, **kwargs) -> None:
        """Note where the weights came from, with the commit: `speed.json` must be of the same one."""
        if name is None:
            return
        place = {key: kwargs[key] for key in _PLACE if kwargs.get(key) is not None}
        # transformers sets it on configurations that come from the Hub, and on no others.
        revision = getattr(self.config, "_commit_hash", None) or kwargs.get("revision")
        name = os.path.abspath(name) if os.path.isdir(name) else str(name)
        self._source = (name, {**place, "revision": revision} if revision else place)

    def read_speed(self) -> dict:
        """
        What `reg4pru tune` measured and left beside the weights, in `speed.json`; see [`per_image`]. A warning says so
        if it was measured on another machine than this.

        Raises:
            `ValueError`: If the model was not loaded from a checkpoint, or its checkpoint has no `speed.json`, a
                damaged one, or one that was measured with other weights than it holds.
        """
        advice = "`reg4pru tune --model_name_or_path <checkpoint> --dataset <images>` makes one"
        if self._source is None:
            raise ValueError(f"The model was not loaded from a checkpoint, so it has no {SPEED_FILE}: {advice}.")
        name, place = self._source
        if os.path.isabs(name) and not os.path.isdir(name):
            raise ValueError(f"The checkpoint {name} is no longer there, and its {SPEED_FILE} neither.")
        path = cached_file(name, SPEED_FILE, _raise_exceptions_for_missing_entries=False, **place)
        if path is None:
            raise ValueError(f"{name} has no {SPEED_FILE}: {advice}.")
        try:
            speed = json.loads(Path(path).read_text(encoding="utf-8"))
            measured = dict(speed["machine"])
            if not speed["candidates"]:
                raise ValueError("it has no candidates")
            speed = per_image(speed)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} was not written by reg4pru tune: {error!r}. {advice}.") from None
        check_tuned_weights(Path(path).parent, speed)
        here = describe_machine(self.device, self.dtype)
        if any(row.get("engine") == here["dtype"] for row in speed["candidates"]):
            measured["dtype"] = here["dtype"]
        other = [
            f"{field} {measured.get(field)} (here {here[field]})"
            for field in here
            if measured.get(field) != here[field]
        ]
        if other:
            logger.warning(
                "The times of %s were measured with %s: they do not hold here. To measure here, tune again.",
                name,
                ", ".join(other),
            )
        return speed


__all__ = ["SPEED_FILE", "SpeedBudgetMixin"]
