"""
Train a Reg4Pru model.

    python scripts/train.py scripts/recipes/tiny_synthetic.yaml --output_dir outputs/tiny
    accelerate launch scripts/train.py scripts/recipes/fives_vits16_1024.yaml --output_dir runs/vits16

Flags override the recipe; a killed run goes on with `--resume_from_checkpoint latest`.
"""

import contextlib
import json
import logging
import math
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAveragePrecision
from tqdm.auto import tqdm

from datasets_fives.transforms import EvalTransform, TrainTransform
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates
from modeling_reg4pru.token_selection import warmup_keep_rates

from arguments import DataArguments, ModelArguments, TrainingArguments, config_fields, parse_arguments  # isort: skip
from checkpoints import find_checkpoint, save_checkpoint  # isort: skip
from optimization import make_average, make_optimizer  # isort: skip
from hub_transfer import TransferError, check_target  # isort: skip
from processes import leave_processes  # isort: skip
from provenance import provenance  # isort: skip
from push_checkpoint import PushArguments, push_trained  # isort: skip
from training_data import ResumableSampler, SeededSamples, StreamedSamples, count_rows, load_data  # isort: skip

logger = logging.getLogger(__name__)


def build_model(arguments: ModelArguments) -> Reg4PruForSemanticSegmentation:
    """A model from a checkpoint, on a backbone, or from scratch."""
    overrides = config_fields(arguments.config_overrides)
    known = set(Reg4PruConfig().to_dict()) | {"num_labels"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"config_overrides has {unknown}, which are no fields of Reg4PruConfig.")
    if arguments.model_name_or_path:
        model = Reg4PruForSemanticSegmentation.from_pretrained(arguments.model_name_or_path, **overrides)
    else:
        overrides.setdefault("id2label", {0: "background", 1: "vessel"})
        if arguments.backbone_name_or_path:
            model = Reg4PruForSemanticSegmentation.from_backbone(arguments.backbone_name_or_path, **overrides)
        else:
            model = Reg4PruForSemanticSegmentation(Reg4PruConfig(**overrides))
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers 5.23 warns of the only name that 5.17 has
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    return model


def keep_rates_of_step(
    model: Reg4PruForSemanticSegmentation, arguments: TrainingArguments, progress: float
) -> tuple[float, ...]:
    """Keep rates of one training step: drawn from a range, or on their way from 1 to the target."""
    target = expand_keep_rates(model.config.keep_rates, model.config.num_stages)
    if arguments.keep_rate_range:
        low, high = arguments.keep_rate_range
        return (low + (high - low) * torch.rand(()).item(),) * len(target)
    warmup = arguments.keep_rate_warmup
    begun = max(0.0, progress - arguments.dense_fraction)
    return warmup_keep_rates(target, begun / warmup if warmup else 1.0)


def begin_step(
    model: Reg4PruForSemanticSegmentation, arguments: TrainingArguments, seed: int, step: int, total_steps: int
) -> tuple[float, ...]:
    """
    Set the model up for a training step; returns the step's keep rates.

    All that a step draws, routing and policies, follows from the seed and its number: a resumed run needs no state of
    the generators, and validation in between changes nothing. All processes draw alike: the routing window is one for
    the whole batch.
    """
    set_seed(hash((seed, step)) % 2**32)
    model.prunes_in_training = step >= arguments.dense_fraction * total_steps
    model.set_mask_annealing(step / total_steps)
    return keep_rates_of_step(model, arguments, step / total_steps)


@torch.inference_mode()
def validate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    """Average precision over all validation pixels, at the keep rates of the configuration."""
    metric = BinaryAveragePrecision(thresholds=1000).to(accelerator.device)
    was_training = model.training
    model.eval()
    for batch in tqdm(loader, desc="validation", leave=False, disable=not accelerator.is_local_main_process):
        logits = model(batch["pixel_values"]).logits.float()
        logits = torch.nn.functional.interpolate(logits, size=batch["labels"].shape[-2:], mode="bilinear")
        gathered = accelerator.gather_for_metrics((logits.softmax(1)[:, 1], batch["labels"]))
        metric.update(*gathered)
    model.train(was_training)
    return metric.compute().item()


def main(argv: list[str] | None = None) -> None:
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir)
    resume_from = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
    # A state of another run may be the start of this one, but then this folder is new, too.
    goes_on = resume_from is not None and output_dir.resolve() in Path(resume_from).resolve().parents
    if not goes_on and output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(f"{output_dir} is not empty: resume it, choose another or pass --overwrite_output_dir.")

    if arguments.push_to_hub:  # refused before training, not after it
        private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
        try:
            check_target(arguments.hub_model_id, "model", private=private, overwrite=overwrite)
        except (TransferError, ValueError) as error:
            sys.exit(f"{error}\nNothing was trained.")

    accelerator, best = run(model_arguments, data_arguments, arguments, resume_from, goes_on)
    leave_processes(accelerator)
    if arguments.push_to_hub and accelerator.is_main_process:
        push_trained(
            PushArguments(
                checkpoint=str(output_dir / best),
                hub_model_id=arguments.hub_model_id,
                hub_private_repo=arguments.hub_private_repo,
                overwrite_repo=arguments.overwrite_repo,
            )
        )


def run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    resume_from: str | None,
    goes_on: bool,
) -> tuple[Accelerator, str]:
    """Train; returns the accelerator, which nothing else holds on to, and the name of the checkpoint to use."""
    output_dir = Path(arguments.output_dir)
    set_seed(arguments.seed)
    model = build_model(model_arguments)
    input_size = model.config.image_size
    data = load_data(data_arguments, input_size, arguments.seed)

    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=arguments.report_to or None,
        project_dir=output_dir,
        # An untrained selector (train_pruning="none") has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING)
    if not goes_on and arguments.overwrite_output_dir and accelerator.is_main_process:
        shutil.rmtree(output_dir, ignore_errors=True)
    accelerator.wait_for_everyone()
    output_dir.mkdir(parents=True, exist_ok=True)

    processor = Reg4PruImageProcessor(size={"height": input_size, "width": input_size})
    normalisation = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    crop = input_size if data_arguments.random_crop else None
    transform = TrainTransform(input_size, crop_size=crop, **normalisation)
    num_photographs = count_rows(data["train"])

    per_step = (
        arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * accelerator.num_processes
    )
    per_epoch = num_photographs * data_arguments.samples_per_photograph
    total_steps = arguments.max_train_steps or math.ceil(per_epoch * arguments.num_train_epochs / per_step)
    steps_per_epoch = max(1, per_epoch // per_step)
    eval_steps = arguments.eval_steps or steps_per_epoch

    optimizer, scheduler = make_optimizer(
        model,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        layer_decay=arguments.layer_decay,
        head_warmup_steps=arguments.head_warmup_steps,
        backbone_warmup_steps=arguments.backbone_warmup_steps,
        total_steps=total_steps,
        poly_power=arguments.poly_power,
    )
    average = make_average(model, arguments.ema_decay).to(accelerator.device) if arguments.ema_decay else None
    model, optimizer = accelerator.prepare(model, optimizer)
    bare_model = accelerator.unwrap_model(model)
    # The scheduler is stepped once per optimiser step here, so Accelerate must not multiply its steps.
    accelerator.register_for_checkpointing(scheduler, *([average] if average else []))
    # `sums` are the losses since the last line of the log.
    progress = {"step": 0, "best_ap": -1.0, "best_step": 0, "sums": {}}
    if resume_from is not None:
        accelerator.load_state(resume_from)
        progress.update(json.loads((Path(resume_from) / "progress.json").read_text()))
        logger.info("Resumed from %s at step %d of %d.", resume_from, progress["step"], total_steps)

    stream = {"total": total_steps * per_step, "start": progress["step"] * per_step, "seed": arguments.seed}
    if data_arguments.streaming:
        samples, sampler = StreamedSamples(data["train"], transform, **stream), None
    else:
        samples = SeededSamples(data["train"], transform, arguments.seed)
        sampler = ResumableSampler(num_photographs, data_arguments.samples_per_photograph, **stream)
    loader = accelerator.prepare(
        DataLoader(
            samples,
            batch_size=arguments.per_device_train_batch_size,
            sampler=sampler,
            num_workers=arguments.dataloader_num_workers,
            generator=torch.Generator(),  # keeps the loader's own draw away from the generator that routing uses
            persistent_workers=False,
        )
    )
    validation_loader = None
    if "validation" in data:
        rows = data["validation"].with_transform(EvalTransform(input_size, **normalisation))
        columns = ("pixel_values", "labels")
        validation_loader = accelerator.prepare(
            DataLoader(
                rows,
                batch_size=arguments.per_device_train_batch_size,
                collate_fn=lambda items: {name: torch.stack([item[name] for item in items]) for name in columns},
            )
        )
    if arguments.report_to:
        accelerator.init_trackers("reg4pru", config={**asdict(model_arguments), **asdict(arguments)})

    def best_of(step: int) -> None:
        """Validate the averaged weights, and keep them if they are the best so far."""
        if validation_loader is None:
            return
        evaluated = average.module if average else bare_model
        ap = validate(evaluated, validation_loader, accelerator)
        log({"validation_ap": ap}, step)
        if ap > progress["best_ap"]:
            progress.update(best_ap=ap, best_step=step)
            save_weights(evaluated, "best")

    def save_weights(evaluated: torch.nn.Module, name: str) -> None:
        if accelerator.is_main_process:
            evaluated.save_pretrained(output_dir / name)
            processor.save_pretrained(output_dir / name)

    def log(values: dict[str, float], step: int) -> None:
        accelerator.log(values, step=step)
        if accelerator.is_main_process:
            with open(output_dir / "training_log.jsonl", "a") as log_file:
                log_file.write(json.dumps({"step": step, **values}) + "\n")

    if accelerator.is_main_process:
        drop_log_after(output_dir / "training_log.jsonl", progress["step"])
    bar = tqdm(
        total=total_steps,
        initial=progress["step"],
        desc="training",
        disable=not accelerator.is_local_main_process,
    )
    sums = {name: torch.tensor(value, device=accelerator.device) for name, value in progress["sums"].items()}
    model.train()
    rates = None
    for batch in loader:
        step = progress["step"]
        if rates is None:  # the first batch of a step
            rates = begin_step(bare_model, arguments, arguments.seed, step, total_steps)
        with accelerator.accumulate(model):
            output = model(batch["pixel_values"], labels=batch["labels"], keep_rates=rates)
            accelerator.backward(output.loss)
            if accelerator.sync_gradients and arguments.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in {"loss": output.loss, **output.loss_parts}.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
        if not accelerator.sync_gradients:
            continue

        rates = None
        scheduler.step()
        if average:
            average.update_parameters(bare_model)
        progress["step"] = step = step + 1
        bar.update()
        if step % arguments.logging_steps == 0:
            # A part that only some steps have (a policy after a dense start) is averaged over all of them.
            steps = arguments.logging_steps * arguments.gradient_accumulation_steps
            means = {name: (total / steps).item() for name, total in sums.items()}
            bar.set_postfix(loss=f"{means['loss']:.3f}", ap=f"{progress['best_ap']:.3f}")
            log({**means, "learning_rate": max(scheduler.get_last_lr())}, step)
            sums = {}
        if step % eval_steps == 0 or step == total_steps:
            best_of(step)
        if arguments.checkpointing_steps and step % arguments.checkpointing_steps == 0:
            progress["sums"] = {name: total.item() for name, total in sums.items()}
            save_checkpoint(accelerator, output_dir, progress, arguments.checkpoints_total_limit)
    bar.close()

    save_weights(average.module if average else bare_model, "last")
    if accelerator.is_main_process:
        results = {
            "provenance": provenance(accelerator.device, arguments.seed),
            "arguments": {**asdict(model_arguments), **asdict(data_arguments), **asdict(arguments)},
            "total_steps": total_steps,
            "train_names": None if data_arguments.streaming else sorted(data["train"]["name"]),
            "best_validation_ap": progress["best_ap"] if validation_loader else None,
            "best_step": progress["best_step"] if validation_loader else None,
        }
        (output_dir / "train_results.json").write_text(json.dumps(results, indent=2))
    return accelerator, "best" if validation_loader else "last"


def drop_log_after(path: Path, step: int) -> None:
    """Lines that a killed run wrote after its last full state would stand twice; its last may be half a line."""
    if path.exists():
        lines = path.read_text().split("\n")[:-1]
        kept = path.with_suffix(".unfinished")
        kept.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
        kept.replace(path)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
