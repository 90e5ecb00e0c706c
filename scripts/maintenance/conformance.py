"""
Run the common tests of transformers on our model, and list what fails or is skipped, with the reason.

    python -m reg4pru.maintenance.conformance

The tests are part of the source distribution of the installed transformers, which pip downloads once into `build/`.
The list is written to `results/conformance.md`; the exit status is that of the tests.
"""

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import transformers

from ..common.provenance import provenance
from ..reporting.tables import markdown_table

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "conformance"
REPORT = ROOT / "results" / "conformance.md"
SOURCES = ("test_modeling_common.py", "test_configuration_common.py")
# Modules that these import and the distribution does not contain; they test exporters and text generation.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def fetch_tests() -> None:
    """Unpack the test sources of the installed version as the package `transformers_tests`."""
    version = transformers.__version__
    package = BUILD / "transformers_tests"
    if (package / f".{version}").exists():
        return
    archive = BUILD / f"transformers-{version}.tar.gz"
    if not archive.exists():
        requirement = f"transformers=={version}"
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--dest", str(BUILD)]
        done = subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement])
        if done.returncode:
            sys.exit(f"pip could not download the source distribution of {requirement}; see above.")
    for name in ("", *(Path(stub).parent.name for stub in STUBS)):
        (package / name).mkdir(parents=True, exist_ok=True)
        (package / name / "__init__.py").touch()
    for name, content in STUBS.items():
        (package / name).write_text(content, encoding="utf-8")
    with tarfile.open(archive) as opened:
        for name in SOURCES:
            content = opened.extractfile(f"transformers-{version}/tests/{name}").read()
            (package / name).write_bytes(content)
    (package / f".{version}").touch()


def run_tests() -> tuple[int, Path]:
    """Run pytest with separate settings: transformers uses markers that our settings do not know."""
    (BUILD / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    outcome = BUILD / "outcome.xml"
    outcome.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-c", str(BUILD / "pytest.ini"), f"--rootdir={ROOT}", f"--junit-xml={outcome}"]
    path = os.pathsep.join(filter(None, [str(BUILD), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([*command, str(ROOT / "tests" / "conformance")], env={**os.environ, "PYTHONPATH": path})
    return done.returncode, outcome


def write_report(outcome: Path) -> None:
    """Write a table of failed and one of skipped tests."""
    tests: dict[str, tuple[str, str]] = {}
    for case in ElementTree.parse(outcome).iter("testcase"):
        name, kind, reason = case.get("name"), "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                kind = "skipped" if child.tag == "skipped" else "failed"
                lines = (child.get("message") or "").strip().splitlines()
                reason = re.sub(r"\s+", " ", lines[0] if lines else "no message")
        # A test with subtests occurs more than once; the worst outcome counts.
        if name not in tests or (kind, tests[name][0]) in (("failed", "passed"), ("failed", "skipped")):
            tests[name] = (kind, reason)
    counts = Counter(kind for kind, _ in tests.values())
    made = provenance()
    lines = [
        "# transformers' common tests against Reg4Pru",
        "",
        f"`ModelTesterMixin` and `ConfigTester` of transformers {transformers.__version__}, run by `make conformance` "
        f"on {made['date'][:10]} with torch {made['versions']['torch']}: {counts['passed']} passed, "
        f"{counts['failed']} failed, {counts['skipped']} skipped.",
    ]
    for kind in ("failed", "skipped"):
        lines += ["", f"## {kind.capitalize()}", ""]
        chosen = sorted((name, reason) for name, (found, reason) in tests.items() if found == kind)
        if not chosen:
            lines.append("None.")
            continue
        rows = [["test", "reason"], *([f"`{name}`", reason] for name, reason in chosen)]
        lines.append(markdown_table(rows, numbers=False))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    fetch_tests()
    status, outcome = run_tests()
    if outcome.exists():
        write_report(outcome)
        sys.stderr.write(f"Listed in {REPORT.relative_to(ROOT)}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
