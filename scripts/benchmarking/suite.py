"""Time, operations and memory of pruned models and of the dense model, measured side by side."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import set_seed

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.atomic_files import replace_text
from ..common.devices import DTYPES, usable_device
from ..common.provenance import provenance
from ..common.weight_fingerprints import measured_weights
from ..inference.loading import check_image_size, load_model
from .arguments import BenchmarkArguments
from .baselines import dense_model, model_config, variant
from .flops import forward_flops, token_counts
from .report import attention_table, inference_table, parts_table, plot_throughput, training_table
from .timing import (
    MEMORY_METHOD,
    interleaved_rounds,
    peak_memory,
    save_profile,
    seconds_per_call,
    summary,
    time_shares,
)
from .training_steps import compare_policy_attention, training_variants, typical_windows


class Benchmark:
    """
    One run of the benchmark: the model, the results so far, and the file that holds them.

    Args:
        arguments (`BenchmarkArguments`): What is measured.
    """

    def __init__(self, arguments: BenchmarkArguments):
        self.arguments = arguments
        self.device = usable_device(arguments.device)
        self.dtype = DTYPES[arguments.dtype]
        self.output_dir = Path(arguments.output_dir)
        set_seed(arguments.seed)
        if arguments.model_name_or_path:
            model = load_model(arguments.model_name_or_path, arguments.model_revision)
        else:
            model = Reg4PruForSemanticSegmentation(model_config(arguments.model_size, arguments.image_size))
        self.input_size = arguments.tile_size or arguments.image_size
        check_image_size(model.config, self.input_size, self.input_size)
        if arguments.allocation:
            model.config.allocation = arguments.allocation
        self.tiles = self._tiles() if arguments.tile_size else None
        if self.tiles is not None and model.config.allocation == "image" and arguments.compile_mode:
            raise ValueError(
                f"--compile_mode is {arguments.compile_mode}, but tiles that share the budget of their image have "
                "unequal numbers of tokens, which a compiled graph cannot have: add --allocation tile."
            )
        self._in_batches = self.tiles is not None and self.device.type == "cpu"
        self.model = model.eval().to(self.device)
        side = self.input_size // model.config.patch_size
        self.grid_size = (side, side)
        depth = model.config.num_hidden_layers
        layers = [layer + depth if layer < 0 else layer for layer in arguments.reactivation_layers]
        # All configurations are created, and thereby validated, before the first measurement.
        self.variants = [
            (rate, layer, variant(self.model, keep_rates=rate, reactivation_layer=layer))
            for layer in layers
            for rate in arguments.keep_rates
        ]
        self.results = {
            "provenance": provenance(self.device, arguments.seed),
            "arguments": asdict(arguments),
            "weights": measured_weights(arguments.model_name_or_path, arguments.model_revision),
            "tiles_per_image": None if self.tiles is None else len(self.tiles),
            "num_parameters": sum(weight.numel() for weight in model.parameters()),
            "memory_method": MEMORY_METHOD[self.device.type],
            "complete": False,
            "inference": [],
            "training": [],
            "training_skipped": {},
            "policy_attention": None,
        }

    def _tiles(self) -> torch.Tensor:
        """Where the tiles of an image lie, `(num_tiles, 9)`, as a new image processor cuts it."""
        tile, image = self.arguments.tile_size, self.arguments.image_size
        processor = Reg4PruImageProcessor(size={"height": tile, "width": tile})
        return processor.cut_image(np.zeros((image, image, 3), np.uint8)).patch_offsets

    def save(self) -> None:
        """Write the results so far; an incomplete file never replaces a complete one."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        replace_text(self.output_dir / "benchmark.json", json.dumps(self.results, indent=1) + "\n")

    def report(self) -> str:
        """Write table.md and benchmark.png; returns the tables."""
        parts = []
        if self.results["inference"]:
            parts += [inference_table(self.results["inference"]), parts_table(self.results["inference"])]
            machine = self.results["provenance"]["device"]
            name = self.arguments.model_name_or_path or f"ViT {self.arguments.model_size}"
            compiled = f", compiled ({self.arguments.compile_mode})" if self.arguments.compile_mode else ""
            tiles = "" if self.tiles is None else f" in {len(self.tiles)} tiles"
            title = f"{name}, {self.arguments.image_size} px{tiles}, {self.arguments.dtype}{compiled}\n{machine}"
            plot_throughput(self.results["inference"], title, self.output_dir / "benchmark.png")
        if self.results["training"]:
            parts.append(training_table(self.results["training"], self.results["training_skipped"]))
        if self.results["policy_attention"]:
            parts.append(attention_table(self.results["policy_attention"]))
        text = "\n\n".join(parts)
        (self.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
        return text

    def compiled(self, model: torch.nn.Module, whole: bool) -> Callable:
        """
        The model, compiled if that was asked for, for inputs of one shape. The dense model of transformers reads its
        mask probability from a tensor, which breaks the graph: it is not compiled as a whole.
        """
        if self.arguments.compile_mode is None:
            return model
        return torch.compile(model, mode=self.arguments.compile_mode, fullgraph=whole, dynamic=False)

    @torch.inference_mode()
    def measure_inference(self, batch_size: int, bar: tqdm) -> None:
        """Memory, then time, of the dense model and of ours in every setting at one batch size."""
        size = self.input_size
        dense = dense_model(self.model, size).to(self.device, self.dtype)
        inputs = batch_size * (1 if self.tiles is None else len(self.tiles))
        shape = (inputs, self.model.config.num_channels, size, size)
        pixel_values = torch.randn(shape, device=self.device, dtype=self.dtype)
        tiles = {} if self.tiles is None else {"patch_offsets": self.tiles.repeat(batch_size, 1).to(self.device)}
        self.model.to(self.dtype)
        models = [dense, *(model for _, _, model in self.variants)]
        rows = [self._row("transformers", None, None, batch_size)]
        rows += [self._row("reg4pru", rate, layer, batch_size, model) for rate, layer, model in self.variants]
        calls = []
        for model, row in zip(models, rows, strict=True):
            bar.set_postfix_str(f"memory, batch {batch_size}, keep {row['keep_rate'] or 'dense'}")
            forward = self.compiled(model, whole=model is not dense)
            known = {} if model is dense else tiles
            # Of many tiles a CPU computes some at a time: ours does so by itself, that of transformers in batches.
            batches = pixel_values.split(4) if model is dense and self._in_batches else (pixel_values,)
            calls.append(
                lambda forward=forward, known=known, batches=batches: [forward(some, **known) for some in batches]
            )
            calls[-1]()  # compiles; fills caches
            row["peak_memory"] = peak_memory(calls[-1], self.device)
            if row["keep_rate"] is not None:
                shares = time_shares(model, lambda model=model: model(pixel_values, **tiles), self.device)
                row["time_shares"] = shares
                row["between_layers_share"] = shares["selectors"] + shares["rest"]
            if self.arguments.profile:
                name = (
                    "dense" if row["keep_rate"] is None else f"keep{row['keep_rate']:g}_l{row['reactivation_layer']}"
                )
                save_profile(calls[-1], self.device, self.output_dir / f"profile_batch{batch_size}_{name}.txt")
            bar.update()

        bar.set_postfix_str(f"time, batch {batch_size}")
        done = self.results["inference"]
        for seconds in interleaved_rounds(calls, self.device, self.arguments.rounds, self.arguments.min_seconds):
            for row, own in zip(rows, seconds, strict=True):
                row["seconds"].append(own)
                row.update(summary(row["seconds"], rows[0]["seconds"], batch_size))
            self.results["inference"] = done + rows
            self.save()
            bar.update(len(rows))

    def _row(
        self,
        name: str,
        rate: float | None,
        layer: int | None,
        batch_size: int,
        model: Reg4PruForSemanticSegmentation | None = None,
    ) -> dict:
        unpruned = variant(self.model, keep_rates=1.0).config
        config = unpruned if model is None else model.config
        inputs = batch_size * (1 if self.tiles is None else len(self.tiles))
        flops = forward_flops(config, self.grid_size, inputs)
        allowed = sum(forward_flops(unpruned, self.grid_size, inputs).values()) / sum(flops.values())
        return {
            "name": name,
            "batch_size": batch_size,
            "keep_rate": rate,
            "reactivation_layer": layer,
            "num_layers": config.num_hidden_layers,
            "token_counts": token_counts(config, math.prod(self.grid_size)),
            "gflops": sum(flops.values()) / 1e9,
            "gflops_parts": {part: value / 1e9 for part, value in flops.items()},
            "flops_limit": allowed,
            "between_layers_share": None,
            "time_shares": None,
            "seconds": [],
        }

    def measure_training(self, bar: tqdm) -> None:
        """Steps of every variant; those that route have a routing window of typical length in every round."""
        arguments = self.arguments
        self.model.float()
        variants, self.results["training_skipped"] = training_variants(
            self.model, self.input_size, arguments.train_batch_size, self.dtype, arguments.compile_mode
        )
        # Every window is a graph of its own: if the steps are compiled, there is only one.
        count = 1 if arguments.compile_mode else arguments.train_rounds
        windows = typical_windows(self.model.config, count) * (arguments.train_rounds // count)
        rows = {name: {"name": name, "seconds": [], "peak_memories": [], "windows": []} for name in variants}
        for window in windows:
            for (name, timed), row in zip(variants.items(), rows.values(), strict=True):
                bar.set_postfix_str(f"training, {name}")
                if timed.routed is not None:
                    timed.routed.config.routing_window = window
                    row["windows"].append(window)
                if timed.routed is not None or not row["peak_memories"]:
                    timed.step()  # warm-up
                    row["peak_memories"].append(peak_memory(timed.step, self.device))
            for timed, row in zip(variants.values(), rows.values(), strict=True):
                row["seconds"].append(seconds_per_call(timed.step, self.device))
                bar.update()
            dense = rows["dense"]
            for row in rows.values():
                row.update(summary(row["seconds"], dense["seconds"], arguments.train_batch_size))
                row["peak_memory"] = statistics.median(row["peak_memories"])
                row["memory_ratio"] = row["peak_memory"] / statistics.median(dense["peak_memories"])
            self.results["training"] = list(rows.values())
            self.save()
        self.results["policy_attention"] = compare_policy_attention(
            self.model.config,
            math.prod(self.grid_size) + self.model.config.num_prefix_tokens,
            self.dtype,
            self.device,
            arguments.train_rounds,
        )

    def run(self) -> None:
        """Measure everything that was asked for."""
        arguments = self.arguments
        self.save()
        steps = len(arguments.batch_sizes) * (1 + len(self.variants)) * (1 + arguments.rounds) * arguments.inference
        steps += arguments.train * arguments.train_rounds * 7
        with tqdm(total=steps, desc="benchmark", unit="run") as bar:
            for batch_size in arguments.batch_sizes if arguments.inference else ():
                self.measure_inference(batch_size, bar)
            if arguments.train:
                self.measure_training(bar)
        self.results["complete"] = True
        self.save()
