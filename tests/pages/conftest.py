"""The test Hub and its clients, for what the pages show."""

from ..hub.conftest import hub, run_client

__all__ = ["hub", "run_client"]
