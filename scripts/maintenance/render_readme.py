"""
Put the tables that the scripts wrote into the README and the page of results, so that nobody types a number.

    python -m reg4pru.maintenance.render_readme            rewrite the pages
    python -m reg4pru.maintenance.render_readme --check    only tell whether they are up to date

Between `<!-- table: results/demo/table.md -->` and `<!-- end of table -->` stands the content of that file; after
`<!-- table: results/demo/table.md | Dice, as trained -->` only the section of that heading.
"""

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "results/README.md", "results/small_models.md")
BLOCK = re.compile(
    r"(<!-- table: (?P<path>\S+)(?: \| (?P<section>[^\n]+?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def render(text: str, root: Path = REPOSITORY) -> str:
    """
    The text with every block replaced by its file.

    Raises:
        `ValueError`: if a block names a file, or a section of it, that does not exist.
    """

    def content(block: re.Match) -> str:
        path = root / block["path"]
        if not path.is_file():
            raise ValueError(f"A page wants the table {block['path']}, which does not exist: run the script first.")
        text = path.read_text()
        if block["section"]:
            text = section_of(text, block["section"], block["path"])
        # The headings of the file would be out of place among those of the README.
        lines = [line for line in text.strip().splitlines() if not line.startswith("# ")]
        lines = [f"**{line.lstrip('# ')}**" if line.startswith("##") else line for line in lines]
        return f"{block[1]}\n{chr(10).join(lines).strip()}\n\n{block[4]}"

    return BLOCK.sub(content, text)


def section_of(text: str, heading: str, path: str) -> str:
    """What stands under `## heading`; raises `ValueError` where there is no such heading."""
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    if heading not in sections:
        raise ValueError(f"A page wants the section {heading!r} of {path}, which has {', '.join(sections)}.")
    return sections[heading]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Change nothing; exit 1 if a page is out of date.")
    check = parser.parse_args().check
    texts = {path: path.read_text() for path in (REPOSITORY / page for page in PAGES)}
    rendered = {path: render(text) for path, text in texts.items()}
    if check:
        return int(rendered != texts)
    for path, text in rendered.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
