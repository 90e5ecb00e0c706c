"""Loading modules of `evaluate` in tests."""

import sys
from collections.abc import Callable, Iterator

import evaluate
import pytest


@pytest.fixture
def load_module(monkeypatch, tmp_path) -> Iterator[Callable[..., evaluate.Metric]]:
    """`evaluate.load` of a file, with the caches of `evaluate` in the test's folder instead of the home's."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    forget()
    yield evaluate.load
    forget()
