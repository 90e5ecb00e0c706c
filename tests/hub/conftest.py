"""Fixtures for tests against the test Hub: the server, and clients in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from .server.server import HubServer

OUR_PACKAGES = ("modeling_reg4pru", "datasets_fives", "reg4pru")

# Python imports a sitecustomize module at its start. An installed package, editable ones too, is found by a finder on
# sys.meta_path, so a finder before all others can hide it, in the client and in every process that it starts.
_HIDE_MODULES = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""

RunClient = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub of its own for each test."""
    with HubServer() as server:
        yield server


@pytest.fixture
def run_client(hub: HubServer, tmp_path: Path) -> RunClient:
    """`run_client(code_or_argv, ...)` runs a client of `hub` in a new process; see `start` for the arguments."""

    def start(
        command: str | Sequence[str],
        *,
        home: Path | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        block_modules: Sequence[str] = OUR_PACKAGES,
        token: str | None = "",
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess:
        """Run Python code (a string) or a program and its arguments (a list; `python` and `hf` are ours).

        Args:
            home (`Path`, *optional*): the client's home with its Hugging Face caches, kept from call to call; by
                default `tmp_path / "home"`.
            env (`dict`, *optional*): more environment variables.
            cwd (`Path`, *optional*): working folder, by default an empty one in `home`.
            block_modules (sequence of `str`, *optional*): top-level modules that the client cannot import, by default
                the packages of this repository.
            token (`str`, *optional*): by default the first user's, `None` for a client that is not logged in.
            check (`bool`, *optional*, defaults to `True`): fail the test when the client fails.
            timeout (`float`, *optional*, defaults to 120): seconds.
        """
        home = home or tmp_path / "home"
        cwd = cwd or home / "work"
        hidden = home / "hidden"
        for folder in (cwd, hidden):
            folder.mkdir(parents=True, exist_ok=True)
        (hidden / "sitecustomize.py").write_text(_HIDE_MODULES.format(names=tuple(block_modules)))

        settings = ("HF_", "HUGGING", "XDG_", "TRANSFORMERS_", "PYTEST_", "PYTHONPATH")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(settings) and not name.lower().endswith("_proxy")
        }
        ours = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(hidden),
            "OMP_NUM_THREADS": "1",
        }
        if token is not None:
            ours["HF_TOKEN"] = token or hub.token
        done = subprocess.run(
            ["python", "-c", command] if isinstance(command, str) else [str(part) for part in command],
            env={**inherited, **ours, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"the client ended with {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return start
