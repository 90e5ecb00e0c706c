"""
Render README, results pages and the card of the reference model from files under `results/`.

    python -m reg4pru.maintenance.render_readme            rewrite the pages
    python -m reg4pru.maintenance.render_readme --check    only tell which are out of date

Between `<!-- table: results/demo/table.md -->` and `<!-- end of table -->` is the content of that file; after
`<!-- table: results/demo/table.md | Dice, as trained -->` only the section with that heading. Within a sentence
`<!-- value: results/demo/table.md | Dice, as trained | Reg4Pru | 0.7 -->0.646<!-- end -->` holds the cell of that row
and column, without its standard deviation; the section is left out where a file has one table, and a row that its
first cell does not tell apart is named by several, `pruned / 0.7`. model_card.md is rendered completely
(reference_card.py).
"""

import argparse
import re
import sys
from pathlib import Path

from .reference_card import reference_card

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    *(f"docs/{page}.md" for page in ("inference", "prune", "studies")),
    *("README.md", "results/README.md", "results/attempts.md", "results/small_models.md"),
)
CARD = "model_card.md"
BLOCK = re.compile(
    r"(<!-- table: (?P<path>\S+)(?: \| (?P<section>[^\n]+?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)
VALUE = re.compile(r"(<!-- value: (?P<place>[^\n]+?) -->)[^<]*(<!-- end -->)")


def render(text: str, root: Path = REPOSITORY) -> str:
    """
    The text of a page with every block and every value replaced by what its file holds.

    Raises:
        `ValueError`: if one names a file, or a section, row or column of it, that does not exist, or a value
            begins a line.
    """

    def read(name: str, section: str | None) -> str:
        if not (root / name).is_file():
            raise ValueError(f"A page includes {name}, which does not exist: run the command that writes it.")
        found = (root / name).read_text(encoding="utf-8")
        return section_of(found, section, name) if section else found

    def value(place: re.Match) -> str:
        if place.string[: place.start()].endswith("\n"):  # there a comment ends the paragraph
            raise ValueError(f"A value begins a line, where Markdown takes it for a block: {place['place']}.")
        name, *section, row, column = place["place"].split(" | ")
        return place[1] + cell_of(read(name, section[0] if section else None), row, column, name) + place[3]

    def content(block: re.Match) -> str:
        text = read(block["path"], block["section"])
        # Headings of the file do not fit between those of the page.
        lines = [line for line in text.strip().splitlines() if not line.startswith("# ")]
        lines = [f"**{line.lstrip('# ')}**" if line.startswith("##") else line for line in lines]
        text = "\n".join(lines).strip().replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        return f"{block[1]}\n{text}\n\n{block[4]}"

    return VALUE.sub(value, BLOCK.sub(content, text))


def section_of(text: str, heading: str, path: str) -> str:
    """The text under `## heading`; raises `ValueError` if there is no such heading."""
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    if heading not in sections:
        raise ValueError(f"A page includes the section {heading!r} of {path}, which has {', '.join(sections)}.")
    return sections[heading]


def cell_of(text: str, row: str, column: str, path: str) -> str:
    """One number of the first Markdown table of a text; raises `ValueError` unless row and column are one each."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    begins = row.split(" / ")
    found = [cells for cells in rows if cells[: len(begins)] == begins]
    if column not in heading or len(found) != 1:
        raise ValueError(
            f"A page shows the value of {row!r} and {column!r} in {path}, whose table has {len(found)} such rows and "
            f"the columns {', '.join(heading)}."
        )
    return found[0][heading.index(column)].split(" ± ")[0]


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
