"""Every command and every block of Python in README, docs and card runs: small models, few steps, the test Hub."""

import json
from pathlib import Path

import pytest

from ..hub.server.server import HubServer
from .shown import NOT_RUN, PAGES, blocks_of, commands_of

pytestmark = [pytest.mark.hub, pytest.mark.timeout(600)]


@pytest.fixture
def hub():
    with HubServer(user="user") as server:
        yield server


def test_what_the_pages_show_runs(hub, run_client, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    others = {owner: hub.add_user(owner) for owner in ("facebook", "tue-mps")}
    (work / "tokens.json").write_text(json.dumps(others))
    worker = ["python", str(Path(__file__).with_name("worker.py")), str(tmp_path / "report.json")]
    run_client(worker, block_modules=(), cwd=work, timeout=500)
    report = json.loads((tmp_path / "report.json").read_text())
    faults = [f"{entry['page']}: {entry['shown']}\n{entry['fault']}" for entry in report if entry["fault"]]
    assert not faults, "\n\n".join(faults)
    assert {entry["page"] for entry in report} >= {*PAGES, "Makefile"}


def test_what_is_not_run_is_still_shown():
    shown = [command for page in PAGES for block in blocks_of(page) for command in commands_of(block.text)]
    assert not [start for start in NOT_RUN if not any(command.startswith(start) for command in shown)]
