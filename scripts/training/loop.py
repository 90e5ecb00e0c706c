"""A training run: the loop over steps, and what it validates, logs and saves on the way."""

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_fives.samples import ResumableSampler, SeededSamples, StreamedSamples, count_rows
from datasets_fives.transforms import EvalTransform, TrainTransform
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..provenance import provenance
from .arguments import DataArguments, ModelArguments, TrainArguments
from .building import make_processor
from .checkpoints import save_checkpoint
from .distillation import distilled_loss
from .optimization import make_average, make_optimizer
from .schedule import begin_step
from .validation import PixelMetrics, vessel_probability

logger = logging.getLogger(__name__)


class TrainingRun:
    """
    Train a model on photographs; everything goes to `output_dir`.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): What is trained.
        data (`dict`): Photographs by side, from [`~reg4pru.training.data.load_data`].
        model_arguments (`ModelArguments`): Where the model comes from; recorded.
        data_arguments (`DataArguments`): What it learns from.
        arguments (`TrainArguments`): How it learns.
        accelerator (`Accelerator`): Devices, precision, accumulation.
        resume_from (`str`, *optional*): Folder of a full state to go on from.
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
    ):
        self.arguments, self.data_arguments, self.model_arguments = arguments, data_arguments, model_arguments
        self.accelerator, self.data = accelerator, data
        self.output_dir = Path(arguments.output_dir)
        size = model.config.image_size
        self.processor = make_processor(model.config, data_arguments)
        self._count_steps()
        # `sums` are the losses since the last line of the log.
        self.progress = {"step": 0, "best_ap": -1.0, "best_step": 0, "sums": {}}
        self._prepare_model(model, resume_from)
        self._prepare_data(size)
        if arguments.report_to:
            accelerator.init_trackers("reg4pru", config={**asdict(model_arguments), **asdict(arguments)})

    def _count_steps(self) -> None:
        arguments = self.arguments
        self.per_step = (
            arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * self.accelerator.num_processes
        )
        per_epoch = count_rows(self.data["train"]) * self.data_arguments.samples_per_photograph
        self.total_steps = arguments.max_train_steps or math.ceil(
            per_epoch * arguments.num_train_epochs / self.per_step
        )
        self.eval_steps = arguments.eval_steps or max(1, per_epoch // self.per_step)

    def _prepare_model(self, model: Reg4PruForSemanticSegmentation, resume_from: str | None) -> None:
        arguments, accelerator = self.arguments, self.accelerator
        optimizer, self.scheduler = make_optimizer(
            model,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            layer_decay=arguments.layer_decay,
            head_warmup_steps=arguments.head_warmup_steps,
            backbone_warmup_steps=arguments.backbone_warmup_steps,
            total_steps=self.total_steps,
            poly_power=arguments.poly_power,
        )
        self.average = None
        if arguments.ema_decay:
            self.average = make_average(model, arguments.ema_decay).to(accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model = accelerator.unwrap_model(self.model)
        # The scheduler is stepped once per optimiser step here, so Accelerate must not multiply its steps.
        accelerator.register_for_checkpointing(self.scheduler, *([self.average] if self.average else []))
        if resume_from is not None:
            accelerator.load_state(resume_from)
            self.progress.update(json.loads((Path(resume_from) / "progress.json").read_text()))
            logger.info("Resumed from %s at step %d of %d.", resume_from, self.progress["step"], self.total_steps)

    def _prepare_data(self, size: int) -> None:
        arguments, data_arguments, data = self.arguments, self.data_arguments, self.data
        normalisation = {"image_mean": self.processor.image_mean, "image_std": self.processor.image_std}
        crop = size if data_arguments.random_crop else None
        transform = TrainTransform(size, crop_size=crop, **normalisation)
        start = self.progress["step"] * self.per_step
        stream = {"total": self.total_steps * self.per_step, "start": start, "seed": arguments.seed}
        if data_arguments.streaming:
            samples, sampler = StreamedSamples(data["train"], transform, **stream), None
        else:
            samples = SeededSamples(data["train"], transform, arguments.seed)
            sampler = ResumableSampler(count_rows(data["train"]), data_arguments.samples_per_photograph, **stream)
        self.loader = self.accelerator.prepare(
            DataLoader(
                samples,
                batch_size=arguments.per_device_train_batch_size,
                sampler=sampler,
                num_workers=arguments.dataloader_num_workers,
                generator=torch.Generator(),  # keeps the loader's own draw away from the generator that routing uses
                persistent_workers=False,
            )
        )
        self.validation_loader = None
        if "validation" in data:
            rows = data["validation"].with_transform(EvalTransform(size, **normalisation))
            batch_size = arguments.per_device_train_batch_size
            self.validation_loader = self.accelerator.prepare(
                DataLoader(rows, batch_size=batch_size, collate_fn=collate)
            )

    def train(self) -> None:
        """All steps that are left, then the last weights and `train_results.json`."""
        progress = self.progress
        if self.accelerator.is_main_process:
            drop_log_after(self.output_dir / "training_log.jsonl", progress["step"])
        device = self.accelerator.device
        sums = {name: torch.tensor(value, device=device) for name, value in progress["sums"].items()}
        quiet = not self.accelerator.is_local_main_process
        self.model.train()
        rates = None
        with tqdm(total=self.total_steps, initial=progress["step"], desc="training", disable=quiet) as bar:
            for batch in self.loader:
                if rates is None:  # the first batch of a step
                    rates = begin_step(
                        self.bare_model, self.arguments, self.arguments.seed, progress["step"], self.total_steps
                    )
                for name, value in self._learn(batch, rates).items():
                    sums[name] = sums.get(name, 0.0) + value
                if self.accelerator.sync_gradients:
                    rates = None
                    sums = self._end_step(sums, bar)
        self._save_weights(self.evaluated, "last")
        if self.accelerator.is_main_process:
            self._write_results()

    def _learn(self, batch: dict[str, torch.Tensor], rates: tuple[float, ...]) -> dict[str, torch.Tensor]:
        """Forward, backward and, at the end of an accumulation, the step; returns every part of the loss."""
        accelerator, max_grad_norm = self.accelerator, self.arguments.max_grad_norm
        with accelerator.accumulate(self.model):
            if self.arguments.distillation and self.bare_model.prunes_in_training:
                no_sync = accelerator.no_sync(self.model)
                loss, parts = distilled_loss(self.model, self.bare_model, batch, rates, dense_pass=no_sync)
            else:
                output = self.model(**batch, keep_rates=rates)
                loss, parts = output.loss, output.loss_parts
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_grad_norm > 0:
                accelerator.clip_grad_norm_(self.model.parameters(), max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}

    def _end_step(self, sums: dict[str, torch.Tensor], bar: tqdm) -> dict[str, torch.Tensor]:
        """Schedule, average, log, validation and full state after a step; returns the sums that are not logged yet."""
        arguments, progress = self.arguments, self.progress
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.bare_model)
        progress["step"] = step = progress["step"] + 1
        bar.update()
        if step % arguments.logging_steps == 0:
            # A part that only some steps have (a policy after a dense start) is averaged over all of them.
            steps = arguments.logging_steps * arguments.gradient_accumulation_steps
            means = {name: (total / steps).item() for name, total in sums.items()}
            bar.set_postfix(loss=f"{means['loss']:.3f}", ap=f"{progress['best_ap']:.3f}")
            self._log({**means, "learning_rate": max(self.scheduler.get_last_lr())}, step)
            sums = {}
        if self.validation_loader is not None and (step % self.eval_steps == 0 or step == self.total_steps):
            self._keep_best(step)
        if arguments.checkpointing_steps and step % arguments.checkpointing_steps == 0:
            progress["sums"] = {name: total.item() for name, total in sums.items()}
            save_checkpoint(self.accelerator, self.output_dir, progress, arguments.checkpoints_total_limit)
        return sums

    @property
    def evaluated(self) -> torch.nn.Module:
        """The model that is validated and saved: the averaged weights, where there is an average."""
        return self.average.module if self.average else self.bare_model

    def _keep_best(self, step: int) -> None:
        ap = self.validate()["ap"]
        self._log({"validation_ap": ap}, step)
        if ap > self.progress["best_ap"]:
            self.progress.update(best_ap=ap, best_step=step)
            self._save_weights(self.evaluated, "best")

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """[`PixelMetrics`] of the validation side, at the keep rates of the configuration."""
        model, accelerator = self.evaluated, self.accelerator
        metrics = PixelMetrics(model.config.semantic_loss_ignore_index).to(accelerator.device)
        was_training = model.training
        model.eval()
        quiet = not accelerator.is_local_main_process
        for batch in tqdm(self.validation_loader, desc="validation", leave=False, disable=quiet):
            probability = vessel_probability(model(batch["pixel_values"]).logits, batch["labels"])
            metrics.update(*accelerator.gather_for_metrics((probability, batch["labels"])))
        model.train(was_training)
        return {name: value.item() for name, value in metrics.compute().items()}

    def _save_weights(self, evaluated: torch.nn.Module, name: str) -> None:
        if self.accelerator.is_main_process:
            evaluated.save_pretrained(self.output_dir / name)
            self.processor.save_pretrained(self.output_dir / name)

    def _log(self, values: dict[str, float], step: int) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with open(self.output_dir / "training_log.jsonl", "a") as log_file:
                log_file.write(json.dumps({"step": step, **values}) + "\n")

    def _write_results(self) -> None:
        validated = self.validation_loader is not None
        recorded = (self.model_arguments, self.data_arguments, self.arguments)
        results = {
            "provenance": provenance(self.accelerator.device, self.arguments.seed),
            "arguments": {name: value for part in recorded for name, value in asdict(part).items()},
            "total_steps": self.total_steps,
            "train_names": None if self.data_arguments.streaming else sorted(self.data["train"]["name"]),
            "best_validation_ap": self.progress["best_ap"] if validated else None,
            "best_step": self.progress["best_step"] if validated else None,
        }
        (self.output_dir / "train_results.json").write_text(json.dumps(results, indent=2))


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Batches of what the model takes; names and conditions stay behind."""
    return {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "labels")}


def drop_log_after(path: Path, step: int) -> None:
    """Lines that a killed run wrote after its last full state would stand twice; its last may be half a line."""
    if path.exists():
        lines = path.read_text().split("\n")[:-1]
        kept = path.with_suffix(".unfinished")
        kept.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
        kept.replace(path)
