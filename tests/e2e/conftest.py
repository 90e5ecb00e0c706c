"""The test Hub and its clients, for tests from end to end."""

from ..hub.conftest import hub, run_client

__all__ = ["hub", "run_client"]
