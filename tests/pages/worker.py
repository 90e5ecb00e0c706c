"""Runs what the pages show, as a client of the test Hub: `python worker.py REPORT`, see test_pages_run.py."""

import io
import json
import os
import re
import runpy
import shlex
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate.state import AcceleratorState, GradientState

from reg4pru.__main__ import main
from reg4pru.common.cli import CommandParser
from reg4pru.pruning import calibration
from tests.pages.shown import NOT_RUN, PAGES, RESULTS, ROOT, Block, blocks_of, commands_of, quick_rule
from tests.pages.world import add_inputs, fill_hub

TINY = "hidden_size=32 num_attention_heads=2 intermediate_size=64 image_size=64"
# How a command begins → flags after those that are shown, which make it short.
SHORTER = {
    "reg4pru train": "--max_train_steps 1 --eval_steps 1 --per_device_train_batch_size 1",
    "reg4pru train tiny_synthetic --output_dir": "--synthetic_counts 3 1 1",
    "reg4pru train tiny_synthetic": f"--working_size 96 --config_overrides {TINY}",
    "reg4pru train sample_dinov2s": "--working_size 96 --checkpointing_steps 1",
    "reg4pru train sample_dinov2s --dataset path/to/images --split resplit --o": "--config_overrides image_size=56",
    "reg4pru finetune": "--max_steps 1 --synthetic_counts 2 1 1",
    "reg4pru tune": "--rounds 1 --keep_rates 1.0 0.5 --selection_pools active --reactivation_layers -1",
    "reg4pru prune": "--num_tiles 32 --max_steps 1",
    "reg4pru benchmark": "--model_size debug --image_size 64 --rounds 1 --min_seconds 0 --keep_rates 1.0 0.5",
    "uv run": "--max_steps 1 --report_to none",
}
SMALLER = {
    "--synthetic_counts 16 1 2 --working_size 512": "--synthetic_counts 2 1 2 --working_size 96",
    "--working_size 512": "--working_size 96",
    "image_size=336": "image_size=56",
    "max_steps=100": "max_steps=1, report_to='none'",
    "eval_steps=50": "eval_steps=1",
    "synthetic_counts=(16, 2, 2)": "synthetic_counts=(2, 1, 1)",
    "COMMIT": "main",
    '"datasets_fives/metrics': f'"{ROOT}/datasets_fives/metrics',
}


class Parsed(Exception):
    """A command line that its parser has accepted."""


def smaller(text: str) -> str:
    for shown, less in SMALLER.items():
        text = text.replace(shown, less)
    return text


def parse_only(words: list[str]) -> None:
    """Let the parser of a command, or of a module, read its flags, and stop there."""
    read_flags = CommandParser.read_flags

    def read(*arguments) -> None:
        read_flags(*arguments)
        raise Parsed

    with patch.object(CommandParser, "read_flags", read):
        try:
            if words[:2] == ["python", "-m"]:
                sys.argv = words[2:]
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words[words.index("reg4pru") :]
                main()
        except Parsed:
            return
    raise ValueError("The command did not read its flags.")


def run_command(command: str) -> None:
    """Run a command in this process, or let its parser read it."""
    words = shlex.split(smaller(command))
    if any(command.startswith(start) for start in NOT_RUN):
        if "reg4pru" in words[:-1]:
            parse_only(words)
        return
    if words[0] == "make":
        rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in rules, "there is no such rule"
        return
    words += " ".join(flags for start, flags in SHORTER.items() if command.startswith(start)).split()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    sys.argv = words
    status = 0
    if words[0] == "reg4pru":
        status = main()
    elif words[:2] == ["python", "-m"]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    elif words[:2] == ["uv", "run"]:  # with what is installed here
        sys.argv = words[2:]
        runpy.run_path(str(ROOT / words[2]), run_name="__main__")
    else:
        raise ValueError("It is neither run nor among NOT_RUN of shown.py.")
    assert not status, f"exit status {status}"


def run_block(block: Block, names: dict) -> list[dict]:
    """What happened: the page, what was run, its time, and what went wrong."""
    report = []
    for shown in commands_of(block.text) if block.language == "bash" else [block.text]:
        said, started, fault = io.StringIO(), time.perf_counter(), ""
        with redirect_stdout(said), redirect_stderr(said):
            try:
                if block.page in RESULTS and block.language == "bash":
                    parse_only(shlex.split(shown))
                elif block.language == "bash":
                    run_command(shown)
                else:
                    exec(compile(smaller(shown), block.page, "exec"), names)
            except (Exception, SystemExit):
                fault = f"{traceback.format_exc()}\n{said.getvalue()[-2000:]}"
        seconds = round(time.perf_counter() - started, 1)
        report.append({"page": block.page, "shown": shown, "seconds": seconds, "fault": fault})
    return report


def run_pages() -> list[dict]:
    base = Path.cwd()
    report = [entry for command in quick_rule() for entry in run_block(Block("Makefile", "bash", command), {})]
    if any(entry["fault"] for entry in report):
        return report
    fill_hub(base / "outputs/quick/run/last", base / "hub")
    for page in (*PAGES, *RESULTS):
        folder = base / page.replace("/", "_")
        folder.mkdir()
        os.chdir(folder)
        add_inputs(page, base)
        names = {}
        for block in blocks_of(page):
            report += run_block(block, names)
        os.chdir(base)
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    calibration.CORRECTION_STEPS = calibration.SELECTOR_STEPS = 40
    Path(sys.argv[1]).write_text(json.dumps(run_pages()), encoding="utf-8")
