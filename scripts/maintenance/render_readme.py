"""
Render README, results pages and the card of the reference model from files under `results/`.

    python -m reg4pru.maintenance.render_readme            rewrite the pages
    python -m reg4pru.maintenance.render_readme --check    only tell which are out of date

Between `<!-- table: results/demo/table.md -->` and `<!-- end of table -->` is the content of that file; after
`<!-- table: results/demo/table.md | Dice, as trained -->` only the section with that heading. model_card.md is
rendered completely (reference_card.py).
"""

import argparse
import re
import sys
from pathlib import Path

from .reference_card import reference_card

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    *(f"docs/{page}.md" for page in ("inference", "method", "studies")),
    *("README.md", "results/README.md", "results/small_models.md"),
)
CARD = "model_card.md"
BLOCK = re.compile(
    r"(<!-- table: (?P<path>\S+)(?: \| (?P<section>[^\n]+?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def render(text: str, root: Path = REPOSITORY) -> str:
    """
    The text of a page with every block replaced by the content of its file.

    Raises:
        `ValueError`: if a block names a file, or a section of it, that does not exist.
    """

    def content(block: re.Match) -> str:
        path = root / block["path"]
        if not path.is_file():
            raise ValueError(f"A page includes {block['path']}, which does not exist: run the command that writes it.")
        text = path.read_text(encoding="utf-8")
        if block["section"]:
            text = section_of(text, block["section"], block["path"])
        # Headings of the file do not fit between those of the page.
        lines = [line for line in text.strip().splitlines() if not line.startswith("# ")]
        lines = [f"**{line.lstrip('# ')}**" if line.startswith("##") else line for line in lines]
        return f"{block[1]}\n{chr(10).join(lines).strip()}\n\n{block[4]}"

    return BLOCK.sub(content, text)


def section_of(text: str, heading: str, path: str) -> str:
    """The text under `## heading`; raises `ValueError` if there is no such heading."""
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    if heading not in sections:
        raise ValueError(f"A page includes the section {heading!r} of {path}, which has {', '.join(sections)}.")
    return sections[heading]


def rendered_pages() -> dict[Path, str]:
    """All pages that are rendered from files under `results/`, with the text that they should have."""
    pages = {path: render(path.read_text(encoding="utf-8")) for path in (REPOSITORY / page for page in PAGES)}
    return pages | {REPOSITORY / CARD: reference_card(REPOSITORY / "results")}


def main() -> int:
    """Render the pages; with `--check` only compare, and exit with status 1 if any is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 if a page is out of date.")
    check = parser.parse_args().check
    stale = 0
    for path, text in rendered_pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            name = path.relative_to(REPOSITORY)
            print(f"{name} is out of date: run python -m reg4pru.maintenance.render_readme", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
