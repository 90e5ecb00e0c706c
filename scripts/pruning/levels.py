"""The models of each level, from a dense one; killed, what was finished is read back."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.pruning_adapter import add_pruning, fingerprint_without_pruning

from ..common.atomic_files import replace_text
from .arguments import UNFINISHED, PruneArguments
from .calibration import fit_correction, fit_selector
from .distillation import distill
from .images import UnlabelledImages
from .labelled_training import train_with_labels
from .tile_states import SampledTiles, TileStates

logger = logging.getLogger(__name__)

SETTINGS, SECONDS = "settings.json", "seconds.json"
CLOCKS = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
FITTED = {
    "selector": "divergence", "drift_correction": True, "train_pruning": "hard", "routing": False,
    "blend_share_weight": 2.0, "allocation": "image",
}  # fmt: skip
# What dropping tokens at random does to a model that nothing was fitted for.
UNTRAINED = {
    "selector": "random", "drift_correction": False, "train_pruning": "none", "routing": False,
    "blend_share_weight": 0.0, "allocation": "tile", "context_grid": 0,
}  # fmt: skip
FEWEST_TILES = 32


class Fitting:
    """
    What is fitted to a dense model, level after level.

    Args:
        base ([`Reg4PruForSemanticSegmentation`]): The dense model. It is not changed.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images ([`UnlabelledImages`]): The images.
        fitted_on (`list[int]`): Places of those to fit on.
        arguments ([`PruneArguments`]): Level, stages, steps, and where unfinished work is kept.

    Attributes:
        models (`dict`): The models by level, the last that of the arguments.
        errors (`dict`): By level what is left to learn.

    Raises:
        `ValueError`: if the images have too few tiles, or a field does not fit.
    """

    def __init__(
        self,
        base: Reg4PruForSemanticSegmentation,
        processor: Reg4PruImageProcessor,
        images: UnlabelledImages,
        fitted_on: list[int],
        arguments: PruneArguments,
    ):
        self.base, self.processor, self.arguments, self.seed = base, processor, arguments, arguments.seed
        self.fields = {
            "pruning_layers": arguments.pruning_layers or base.config.pruning_layers or None,
            "reactivation_layer": arguments.reactivation_layer or base.config.reactivation_layer,
            "context_grid": arguments.context_grid,
            "keep_rates": arguments.keep_rates[0],
        }
        try:
            self.models = {"untrained": add_pruning(base, self.seed, **{**self.fields, **UNTRAINED})}
            self.models["calibrated"] = add_pruning(base, self.seed, **FITTED, **self.fields)
        except StrictDataclassError as error:  # it wraps what is wrong with a field
            raise ValueError(str(error.__cause__ or error)) from error
        self.names = [images.names[place] for place in fitted_on]
        sizes = [images.sizes[place] for place in fitted_on]
        self.tiles = SampledTiles(Subset(images, fitted_on), sizes, processor, arguments.num_tiles, self.seed)
        if len(self.tiles) < FEWEST_TILES:
            raise ValueError(
                f"{len(fitted_on)} images to fit on give {len(self.tiles)} tiles of {base.config.image_size} pixels, "
                f"and at least {FEWEST_TILES} are needed: give more images, or a larger --num_tiles (now "
                f"{arguments.num_tiles})."
            )
        self.work, self.errors = Path(arguments.output_dir) / UNFINISHED, {}
        self._continue_or_begin(images.hashes)

    def run(self) -> Reg4PruForSemanticSegmentation:
        """The model of the level."""
        level, steps, model = self.arguments.level, self.arguments.max_steps, self.models["calibrated"]
        with self._timed("calibrated"):
            self.errors["calibrated"] = self._calibrate(model, self.work / "calibrated")
        if level == "calibrate":
            return model
        calibrated, model = model, add_pruning(self.base, self.seed, **FITTED, **self.fields)
        model.load_state_dict(calibrated.state_dict())
        if level == "distill":
            pixels = TileStates(self.work / "calibrated", model, len(self.tiles)).pixels
            with self._timed("distilled"):
                loss = distill(model, self.base, pixels, steps, self.seed, self.work / "distillation.pt")
            self.errors["distilled"] = {"loss": loss}
            self.models["distilled"] = model
        else:
            with self._timed("labelled"):
                train_with_labels(model, self.processor, self.arguments, self.names, self.work / "labelled")
            self.models["labelled"] = model
        return model

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """
        How long each level took after the one before it, interruptions left out: `seconds`, and `processor_seconds`,
        which other work of the machine does not lengthen.
        """
        path = self.work / SECONDS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {key: {} for key in CLOCKS}

    @contextmanager
    def _timed(self, level: str) -> Iterator[None]:
        start = {name: clock() for name, clock in CLOCKS.items()}
        try:
            yield
        finally:
            passed = self.seconds
            for name, clock in CLOCKS.items():
                seconds = passed[name].get(level, 0) + clock() - start[name]
                passed[name] = {**passed[name], level: seconds}
            replace_text(self.work / SECONDS, json.dumps(passed))

    def _continue_or_begin(self, hashes: list[str]) -> None:
        """What a run with other settings has left unfinished is of no use to this one."""
        settings = {
            "tiles": self.tiles.places, "images": hashes, "seed": self.seed,
            "weights": fingerprint_without_pruning(self.base), "fields": self.fields,
            "working_size": self.processor.working_size, "level": self.arguments.level,
            "max_steps": self.arguments.max_steps,
        }  # fmt: skip
        path, text = self.work / SETTINGS, json.dumps(settings, indent=1)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            logger.info("Continues what was interrupted in %s.", self.work.parent)
            return
        if self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True)
        replace_text(path, text)

    def _calibrate(self, model: Reg4PruForSemanticSegmentation, work: Path) -> dict[str, float]:
        """Corrections and selectors, stage after stage; what was fitted before an interruption is read back."""
        states, errors = TileStates(work, model, len(self.tiles)), {}
        states.compute(self.tiles)
        for stage in range(model.config.num_stages):
            for kind, module, fit in (
                ("correction", model.drift_corrections[stage], fit_correction),
                ("selector", model.selectors[stage], fit_selector),
            ):
                name = f"{kind}-{stage}"
                weights, record = work / f"{name}.safetensors", work / f"{name}.json"
                if record.exists():
                    module.load_state_dict(load_file(weights))
                    errors[name] = json.loads(record.read_text(encoding="utf-8"))
                    continue
                errors[name] = fit(model, states, stage, self.seed + stage)
                save_file({key: tensor.cpu() for key, tensor in module.state_dict().items()}, weights)
                replace_text(record, json.dumps(errors[name]))  # last: without it the fit is done again
        return errors
