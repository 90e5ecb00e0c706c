"""What made a result file: command, versions, device, seed and commit."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from modeling_reg4pru.speed_budget import processor_name

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "kornia", "numpy", "scikit-image")

# What else decides how fast a CPU computes: threads, and whether freed memory goes back to the system.
SPEED_VARIABLES = (
    "OMP_NUM_THREADS",
    "LD_PRELOAD",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)


def git_commit() -> str:
    """The commit of this repository, with `+changes` if the working tree differs; outside it the package's version."""
    folder = Path(__file__).resolve().parent
    # Installed from a wheel, this file may lie in somebody else's repository, whose commit says nothing of it.
    tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        subprocess.run(tracked, cwd=folder, capture_output=True, check=True)
        commit, changes = (
            subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return f"reg4pru {_installed('reg4pru')}"
    return f"{commit}+changes" if changes else commit


def device_name(device: torch.device | str) -> str:
    """`NVIDIA H200` or the like; for a CPU its model, where the system tells, and the number of threads in use."""
    threads = torch.get_num_threads()
    shown = "" if torch.device(device).type == "cuda" else f", {threads} thread{'s' if threads > 1 else ''}"
    return f"{processor_name(device)}{shown}"


def provenance(device: torch.device | str = "cpu", seed: int | None = None) -> dict:
    """
    Args:
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the result was computed.
        seed (`int`, *optional*): Its seed.

    Returns:
        `dict` with `command`, `commit`, `date` (UTC), `device`, `seed`, `python`, the `versions` of the packages and
        those of the [`SPEED_VARIABLES`] that were set, as `environment`.
    """
    return {
        "command": " ".join([program_name(sys.argv[0]), shlex.join(map(_portable, sys.argv[1:]))]).strip(),
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "seed": seed,
        "python": platform.python_version(),
        # The metadata of a torch from the index do not say for which CUDA it was built.
        "versions": {name: _installed(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        "environment": {name: os.environ[name] for name in SPEED_VARIABLES if os.environ.get(name)},
    }


def program_name(program: str) -> str:
    """`reg4pru train` for our commands (see `__main__.py`), `python -m <module>` or `python <script>` for others."""
    if program.startswith("reg4pru "):
        return program
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == program:  # started with -m, which puts the file in the module's place
        return f"python -m {spec.name}"
    return f"python {_portable(program)}"


def _portable(argument: str) -> str:
    """Paths below the working directory are written relative to it: what made a file is not where it was made."""
    path = Path(argument)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else argument


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:  # PackageNotFoundError is one
        return None
