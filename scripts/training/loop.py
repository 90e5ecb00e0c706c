"""A training run: the loop over steps, and what it validates, logs and saves on the way."""

import json
import logging
import math
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_fives.training_samples import ResumableSampler, SeededSamples, StreamedSamples, count_rows
from datasets_fives.transforms import TrainTransform
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..common.atomic_files import replace_text
from ..common.data_overlap import image_fingerprints, write_training_images
from .arguments import DataArguments, ModelArguments, TrainArguments
from .checkpoints import check_steps_left, list_checkpoints, replace_files, save_checkpoint, writing
from .distillation import distilled_loss
from .interruption import StopRequest, TrainingError, check_finite, leave_interrupts, measurement_error, resume_hint
from .optimization import make_average, make_optimizer
from .run_record import (
    check_data,
    collect_trained_on,
    describe_run,
    forgotten_unless,
    settings_of,
    used_settings,
    write_record,
)
from .schedule import begin_step
from .setup import collate, make_augmentation, make_processor, names_of
from .tracking import start_tracker
from .validation import ImageMetrics, ImageTiles, metric_names, tile_predictions

logger = logging.getLogger(__name__)


class TrainingRun:
    """
    Train a model on images; everything goes to `output_dir`, and nothing before [`~TrainingRun.train`].

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): What is trained.
        data (`dict`): Images by side, from [`~reg4pru.training.setup.load_data`].
        model_arguments (`ModelArguments`): Where the model comes from; recorded.
        data_arguments (`DataArguments`): What it learns from.
        arguments (`TrainArguments`): How it learns.
        accelerator (`Accelerator`): Devices, precision, accumulation.
        resume_from (`str`, *optional*): Folder of a full state to resume from.
        same_run (`bool`, *optional*, defaults to `False`): Whether that state is of the run in `output_dir`.

    Raises:
        `ValueError`: if settings, model, data and full state do not go together.
    """

    def __init__(
        self,
        model: Reg4PruForSemanticSegmentation,
        data: dict,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainArguments,
        accelerator: Accelerator,
        resume_from: str | None = None,
        same_run: bool = False,
    ):
        self.arguments, self.data_arguments = arguments, data_arguments
        self.accelerator, self.data = accelerator, data
        self.output_dir = Path(arguments.output_dir)
        self.trained_on = collect_trained_on(
            image_fingerprints(data["train"]), model_arguments.model_name_or_path, None, resume_from
        )
        size = model.config.image_size
        self.processor = make_processor(model.config, data_arguments)
        self._count_steps()
        # `sums` are the losses since the last line of the log.
        self.metric = metric_names(model.config.num_labels)[0]
        self.progress = {"step": 0, f"best_{self.metric}": -1.0, "best_step": 0, "sums": {}}
        self.unchecked: dict[int, torch.Tensor] = {}  # losses by step, of which it is not known yet if they are finite
        self.settings = settings_of(accelerator.num_processes, model_arguments, data_arguments, arguments)
        self.record = describe_run(self.settings, data, accelerator.device, arguments.seed)
        self.record["used"] = used_settings(self.settings, self.total_steps)
        if same_run:
            check_data(self.output_dir, self.record["data"])
        self._prepare_model(model, resume_from)
        self._prepare_data(size)

    def _count_steps(self) -> None:
        arguments = self.arguments
        self.per_step = (
            arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * self.accelerator.num_processes
        )
        per_epoch = count_rows(self.data["train"]) * self.data_arguments.samples_per_image
        self.total_steps = arguments.max_train_steps or math.ceil(
            per_epoch * arguments.num_train_epochs / self.per_step
        )
        self.eval_steps = arguments.eval_steps or max(1, per_epoch // self.per_step)

    def _prepare_model(self, model: Reg4PruForSemanticSegmentation, resume_from: str | None) -> None:
        arguments, accelerator = self.arguments, self.accelerator
        optimizer, self.scheduler = make_optimizer(
            model,
            arguments,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            total_steps=self.total_steps,
        )
        self.average = None
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and arguments.ema_decay:
            raise ValueError(
                f"--ema_decay is {arguments.ema_decay}: under FSDP there is no weight average; add --ema_decay 0."
            )
        if self.sharded and arguments.distillation and model.config.selector == "divergence":
            raise ValueError(
                "`selector='divergence'` asks the heads what they make of a guess, but under FSDP a process holds "
                "only a part of them: train on one device, by DDP, or with another selector."
            )
        if arguments.ema_decay:
            self.average = make_average(model, arguments.ema_decay).to(accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model = accelerator.unwrap_model(self.model)
        # The scheduler is stepped once per optimiser step here, so Accelerate must not multiply its steps.
        accelerator.register_for_checkpointing(self.scheduler, *([self.average] if self.average else []))
        if resume_from is not None:
            self.progress.update(json.loads((Path(resume_from) / "progress.json").read_text(encoding="utf-8")))
            check_steps_left(resume_from, self.progress["step"], self.total_steps)
            accelerator.load_state(resume_from)
            logger.info("Resumed from %s at step %d of %d.", resume_from, self.progress["step"], self.total_steps)

    def _prepare_data(self, size: int) -> None:
        arguments, data_arguments, data = self.arguments, self.data_arguments, self.data
        normalisation = {"image_mean": self.processor.image_mean, "image_std": self.processor.image_std}
        crop = size if data_arguments.random_crop else None
        transform = TrainTransform(
            size,
            crop_size=crop,
            num_labels=self.bare_model.config.num_labels,
            augmentation=make_augmentation(data_arguments),
            **normalisation,
        )
        start = self.progress["step"] * self.per_step
        stream = {"total": self.total_steps * self.per_step, "start": start, "seed": arguments.seed}
        if data_arguments.streaming:
            self.order = samples = StreamedSamples(data["train"], transform, **stream)
            sampler = None
        else:
            samples = SeededSamples(data["train"], transform, arguments.seed)
            sampler = ResumableSampler(count_rows(data["train"]), data_arguments.samples_per_image, **stream)
            self.order = sampler
        self.loader = self.accelerator.prepare(
            DataLoader(
                samples,
                batch_size=arguments.per_device_train_batch_size,
                sampler=sampler,
                num_workers=arguments.dataloader_num_workers,
                worker_init_fn=leave_interrupts,
                generator=torch.Generator(),  # keeps the loader's own draw away from the generator that routing uses
                persistent_workers=False,
            )
        )
        self.validation_loader = None
        if "validation" in data:
            tiles = ImageTiles(data["validation"], self.processor, self.bare_model.config.allocation)
            batch_size = tiles.batch_size or arguments.per_device_train_batch_size
            self.validation_loader = self.accelerator.prepare(
                DataLoader(tiles, batch_size=batch_size, collate_fn=collate)
            )

    def train(self) -> int:
        """
        All steps that are left, then the last weights and `train_results.json`.

        Returns:
            `int`: The signal that ended it before its last step; then the full state is saved. 0 if none did.

        Raises:
            [`TrainingError`]: if a loss is not finite, or the disk cannot be written to.
        """
        progress = self.progress
        if self.arguments.report_to:
            start_tracker(self.accelerator, self.arguments.report_to, self.output_dir, self.settings)
        if self.accelerator.is_main_process:
            write_record(self.output_dir, self.record)
            drop_log_after(self.output_dir / "training_log.jsonl", progress["step"])
        device = self.accelerator.device
        sums = {name: torch.tensor(value, device=device) for name, value in progress["sums"].items()}
        quiet = not self.accelerator.is_local_main_process
        self.model.train()
        if progress["step"] == self.total_steps:  # it had ended, and was killed before it could write them
            self._save_weights(self.evaluated, "last")
        if progress.pop("unmeasured", False):
            self._measure(sums)
        begins = True  # a step, with the next batch
        bar = tqdm(total=self.total_steps, initial=progress["step"], desc="training", disable=quiet)
        with StopRequest() as stop, bar, forgotten_unless(self.output_dir, lambda: progress["step"] > 0):
            for batch in self.loader:
                if begins:
                    rates = begin_step(
                        self.bare_model, self.arguments, self.arguments.seed, progress["step"], self.total_steps
                    )
                for name, value in self._learn(batch, rates).items():
                    sums[name] = sums.get(name, 0.0) + value
                begins = self.accelerator.sync_gradients
                if begins:
                    sums = self._end_step(sums, bar)
                    if stop.agreed() and progress["step"] < self.total_steps:
                        self._save_state(sums)
                        return stop.requested
        if self.accelerator.is_main_process:
            self._write_results()
        return 0

    def _learn(self, batch: dict[str, torch.Tensor], rates: tuple[float, ...] | None) -> dict[str, torch.Tensor]:
        """Forward, backward and, at the end of an accumulation, the step; returns every part of the loss."""
        accelerator, max_grad_norm = self.accelerator, self.arguments.max_grad_norm
        with accelerator.accumulate(self.model):
            if self.arguments.distillation and rates is not None:
                no_sync = accelerator.no_sync(self.model)
                loss, parts = distilled_loss(self.model, self.bare_model.config, batch, rates, dense_pass=no_sync)
            else:
                output = self.model(**batch, keep_rates=rates)
                loss, parts = output.loss, output.loss_parts
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_grad_norm > 0:
                accelerator.clip_grad_norm_(self.model.parameters(), max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        step = self.progress["step"] + 1
        self.unchecked[step] = self.unchecked.get(step, 0.0) + loss.detach()
        return {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}

    def _end_step(self, sums: dict[str, torch.Tensor], bar: tqdm) -> dict[str, torch.Tensor]:
        """Schedule, average, log, validation and full state after a step; returns the sums that are not logged yet."""
        arguments, progress = self.arguments, self.progress
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.bare_model)
        progress["step"] = step = progress["step"] + 1
        bar.update()
        validates = self.validation_loader is not None and (step % self.eval_steps == 0 or step == self.total_steps)
        saves = bool(arguments.checkpointing_steps) and step % arguments.checkpointing_steps == 0
        logs = step % arguments.logging_steps == 0
        # Looking at a loss waits for the device; before anything is kept it must be.
        if self.accelerator.device.type == "cpu" or validates or saves or logs or step == self.total_steps:
            self._check_losses()
        if logs:
            # A part that only some steps have (a policy after a dense start) is averaged over all of them.
            steps = arguments.logging_steps * arguments.gradient_accumulation_steps
            means = {name: (total / steps).item() for name, total in sums.items()}
            best = {self.metric: f"{progress[f'best_{self.metric}']:.3f}"} if progress["best_step"] else {}
            bar.set_postfix(loss=f"{means['loss']:.3f}", **best)
            self._log({**means, "learning_rate": max(self.scheduler.get_last_lr())}, step)
            sums = {}
        if step == self.total_steps:  # before a measurement that may fail
            self._save_weights(self.evaluated, "last")
        if validates:
            self._measure(sums)
        if saves:
            self._save_state(sums)
        return sums

    def _check_losses(self) -> None:
        check_finite(self.unchecked, self._names, resume_hint(list_checkpoints(self.output_dir)))
        self.unchecked = {}

    def _names(self, step: int) -> list[str]:
        """The images of a step, of all processes."""
        positions = range((step - 1) * self.per_step, step * self.per_step)
        if self.data_arguments.streaming:
            return self.order.names(positions)
        return self.data["train"][self.order.rows(positions)]["name"]

    def _save_state(self, sums: dict[str, torch.Tensor]) -> None:
        self._check_losses()
        self.progress["sums"] = {name: total.item() for name, total in sums.items()}
        limit = self.arguments.checkpoints_total_limit
        save_checkpoint(self.accelerator, self.output_dir, self.progress, limit, self.trained_on)

    @property
    def evaluated(self) -> torch.nn.Module:
        """The model that is validated and saved: the averaged weights, where there is an average."""
        return self.average.module if self.average else self.bare_model

    def _measure(self, sums: dict[str, torch.Tensor]) -> None:
        """Validate and keep the best weights. Whatever fails there, what was learned is saved, and measured later."""
        try:
            self._keep_best(self.progress["step"])
        except TrainingError:  # the disk
            raise
        except Exception as error:
            # The other processes are in the measurement, and would not save with this one.
            if self.accelerator.num_processes > 1:
                raise
            self.progress["unmeasured"] = True
            self._save_state(sums)
            saved = resume_hint(list_checkpoints(self.output_dir))
            raise measurement_error(error, self.progress["step"], saved) from error

    def _keep_best(self, step: int) -> None:
        value, best = self.validate()[self.metric], f"best_{self.metric}"
        if math.isnan(value):  # undefined: no state is better than another
            return
        self._log({f"validation_{self.metric}": value}, step)
        if value > self.progress[best]:
            self.progress.update({best: value, "best_step": step})
            self._save_weights(self.evaluated, "best")

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """[`ImageMetrics`] of the validation side, at the keep rates of the configuration."""
        model, accelerator = self.evaluated, self.accelerator
        metrics = ImageMetrics(names_of(model.config), model.config.semantic_loss_ignore_index)
        was_training = model.training
        model.eval()
        quiet = not accelerator.is_local_main_process
        for batch in tqdm(self.validation_loader, desc="validation", leave=False, disable=quiet):
            outputs = model(batch["pixel_values"], patch_offsets=batch["patch_offsets"])
            predictions = tile_predictions(outputs.logits, batch["labels"])
            tiles = predictions, batch["labels"], batch["patch_offsets"]
            metrics.update(*accelerator.gather_for_metrics(tiles))
        model.train(was_training)
        return metrics.compute()

    def _save_weights(self, evaluated: torch.nn.Module, name: str) -> None:
        # Under FSDP every process holds a part of every weight, and the model is of a class that was made for that.
        weights = self.accelerator.get_state_dict(self.model) if self.sharded else None
        if not self.accelerator.is_main_process:
            return
        if self.sharded:
            evaluated = Reg4PruForSemanticSegmentation(evaluated.config)
            evaluated.load_state_dict(weights)
        unfinished = self.output_dir / f"{name}.unfinished"
        with writing(self.output_dir, f"The weights {name!r}", unfinished):
            evaluated.save_pretrained(unfinished)
            self.processor.save_pretrained(unfinished)
            write_training_images(unfinished, self.trained_on)
            replace_files(unfinished, self.output_dir / name)

    def _log(self, values: dict[str, float], step: int) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            log_path = self.output_dir / "training_log.jsonl"
            with writing(self.output_dir, log_path.name), open(log_path, "a", encoding="utf-8") as log_file:
                log_file.write(json.dumps({"step": step, **values}) + "\n")

    def _write_results(self) -> None:
        validated = self.progress["best_step"] > 0
        results = {
            **self.record,
            "total_steps": self.total_steps,
            "train_names": None if self.data_arguments.streaming else sorted(self.data["train"]["name"]),
            f"best_validation_{self.metric}": self.progress[f"best_{self.metric}"] if validated else None,
            "best_step": self.progress["best_step"] if validated else None,
        }
        with writing(self.output_dir, "train_results.json"):
            replace_text(self.output_dir / "train_results.json", json.dumps(results, indent=2) + "\n")


def drop_log_after(path: Path, step: int) -> None:
    """Lines that a killed run wrote after its last full state would stand twice; its last may be half a line."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        replace_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
