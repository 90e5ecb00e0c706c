"""
Put the tables that the scripts wrote into the README, so that no number in it is typed by hand.

    python scripts/render_readme.py            rewrite README.md
    python scripts/render_readme.py --check    only tell whether it is up to date

Between `<!-- table: results/demo/table.md -->` and `<!-- end of table -->` stands the content of that file.
"""

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (?P<path>\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def render(text: str, root: Path = REPOSITORY) -> str:
    """
    The text with every block replaced by its file.

    Raises:
        `ValueError`: if a block names a file that does not exist.
    """

    def content(block: re.Match) -> str:
        path = root / block["path"]
        if not path.is_file():
            raise ValueError(
                f"The README wants the table {block['path']}, which does not exist: run the script first."
            )
        # The headings of the file would be out of place among those of the README.
        lines = [line for line in path.read_text().strip().splitlines() if not line.startswith("# ")]
        lines = [f"**{line.lstrip('# ')}**" if line.startswith("##") else line for line in lines]
        return f"{block[1]}\n{chr(10).join(lines).strip()}\n\n{block[3]}"

    return BLOCK.sub(content, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Change nothing; exit 1 if the README is out of date.")
    check = parser.parse_args().check
    readme = REPOSITORY / "README.md"
    text = readme.read_text()
    rendered = render(text)
    if check:
        return int(rendered != text)
    readme.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
