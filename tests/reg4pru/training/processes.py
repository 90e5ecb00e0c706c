"""Trainings in processes of their own, which can be killed; a server that has imported everything forks them."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import datasets
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import finetune, train

TOKEN = "hf_" + "NeverWrittenAnywhere" * 2
CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "num_upscale_blocks": 1, "num_blocks": 1, "num_register_tokens": 1, "pruning_layers": [0, 1],
    "reactivation_layer": 2, "routing_window": [0, 2], "token_multiple": 2, "masked_attention": False,
}  # fmt: skip
DATA = ["--working_size", "32", "--synthetic_counts", "6", "2", "1", "--per_device_train_batch_size", "2",
        "--learning_rate", "1e-3", "--head_warmup_steps", "1", "--backbone_warmup_steps", "1"]  # fmt: skip
STEPS = 10
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.reg4pru.training.processes"])


def _work(command: str, arguments: list[str], log: str, cache: str, prepare: Callable[[], None] | None) -> None:
    output = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.environ.update(HF_TOKEN=TOKEN, ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = cache
    if prepare is not None:
        prepare()
    {"train": train.main, "finetune": finetune.main}[command](arguments)


def _shard() -> None:
    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, **settings) -> None:
        begin(self, *args, **settings)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["Reg4PruLayer"],
                state_dict_type="SHARDED_STATE_DICT",
                cpu_ram_efficient_loading=False,
            )

    AcceleratorState.__init__ = begin_sharded


def _join_pair(use_cpu: bool, shards: bool, port: int, rank: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, ACCELERATE_USE_CPU=str(use_cpu))
    if rank:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        if not shards:  # else it writes its part of every state
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if shards:
        _shard()


class Runs:
    """Starts `reg4pru train` and `reg4pru finetune` on a tiny model, below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        torch.manual_seed(0)
        Reg4PruForSemanticSegmentation(
            Reg4PruConfig(**CONFIG, id2label={0: "background", 1: "vessel"})
        ).save_pretrained(folder / "start")
        Reg4PruImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "start")

    def start(
        self,
        command: str,
        name: str,
        *more: object,
        config: dict | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> BaseProcess:
        """A process that trains in the folder of that name, or goes on there."""
        log, cache = str(self.folder / f"{Path(name).name}.log"), str(self.folder / "cache")
        words = self.words(command, name, *more, config=config)
        process = CONTEXT.Process(target=_work, args=(command, words, log, cache, prepare))
        process.start()
        return process

    def words(self, command: str, name: str, *more: object, config: dict | None = None) -> list[str]:
        """The command line of that."""
        config = config or {}
        arguments = ["--output_dir", str(self.folder / name), *DATA, "--logging_steps", "1", "--ema_decay", "0.9"]
        if command == "train":
            config = {**CONFIG, **config}
            arguments += ["--max_train_steps", STEPS, "--checkpointing_steps", "2", "--eval_steps", "3"]
        else:
            start = ["--model_name_or_path", self.folder / "start", "--use_cpu", "--report_to", "none"]
            arguments += [*start, "--max_steps", STEPS, "--save_steps", "2", "--save_total_limit", "2"]
        overrides = ["--config_overrides", *(f"{field}={json.dumps(value)}" for field, value in config.items())]
        overrides = overrides if config else []
        return [str(argument) for argument in [*arguments, *overrides, *more]]

    def complete_pair(
        self,
        command: str,
        name: str,
        *more: object,
        config: dict | None = None,
        use_cpu: bool = True,
        shards: bool = False,
    ) -> list[int]:
        """Exit codes of two processes that train together; the second can write to no file."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        prepare = partial(_join_pair, use_cpu, shards, port)
        pair = [self.start(command, name, *more, config=config, prepare=partial(prepare, rank)) for rank in (0, 1)]
        for process in pair:
            process.join(120)
        return [process.exitcode for process in pair]

    def complete(
        self,
        command: str,
        name: str,
        *more: object,
        config: dict | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> int:
        """Exit code of a process that was left alone."""
        process = self.start(command, name, *more, config=config, prepare=prepare)
        process.join(240)
        assert process.exitcode is not None, f"{command} did not end"
        return process.exitcode

    def resume(self, command: str, name: str) -> int:
        """Go on, or start again where no full state was finished."""
        if self.states(command, name):
            return self.complete(command, name, "--resume_from_checkpoint", "latest")
        if command == "train":
            return self.complete(command, name, "--overwrite_output_dir", "true")
        if (self.folder / name).exists():
            (self.folder / name).rename(self.folder / f"{name}-too-early")
        return self.complete(command, name)

    def states(self, command: str, name: str) -> list[Path]:
        """Full states that were finished."""
        return sorted(
            (self.folder / name).glob({"train": "checkpoints/step-*", "finetune": "checkpoint-*/files.json"}[command])
        )

    def weights(self, command: str, name: str) -> bytes:
        """The file with the final weights."""
        folder = self.folder / name
        return ((folder / "last" if command == "train" else folder) / "model.safetensors").read_bytes()

    def said(self, name: str) -> str:
        """What a run wrote to the terminal."""
        return (self.folder / f"{name}.log").read_text()

    def wait_until(self, process: BaseProcess, happens: Callable[[], bool]) -> None:
        """Until something happens in a folder, or the process ends."""
        deadline = time.monotonic() + 120
        while process.is_alive() and not happens():
            assert time.monotonic() < deadline, "nothing happened"

    def wait_for_writing(self, process: BaseProcess, command: str, name: str, draw: random.Random) -> None:
        """Until a full state, the second or a later one, is half written."""
        wanted = draw.choice(["*.safetensors", "optimizer*", "random_states*", "rng_state*"])
        first = draw.choice([2, 4, 6])

        def half() -> bool:
            if command == "train":
                parts, before = "checkpoints/unfinished", f"checkpoints/step-{first:08d}"
            else:
                parts, before = f"checkpoint-{first + 2}", f"checkpoint-{first}"
            folder = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # renamed between two looks
                return bool(list((folder / parts).glob(wanted))) and (folder / before).exists()
            return False

        self.wait_until(process, half)
