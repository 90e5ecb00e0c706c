"""Tables in README and model card come from files, and those in ours are up to date."""

import sys

import pytest

from reg4pru.maintenance import render_readme
from reg4pru.maintenance.render_readme import REPOSITORY, render

TEXT = """# Title

<!-- table: results/one.md -->
old numbers
<!-- end of table -->
between
<!-- table: two.md -->
<!-- end of table -->
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.md").write_text("# Heading\n\n## Sub\n\n| a |\n|---|\n| 1\\2 |\n\n")
    (tmp_path / "two.md").write_text("words\n")
    return tmp_path


RENDERED = """# Title

<!-- table: results/one.md -->

**Sub**

| a |
|---|
| 1\\2 |

<!-- end of table -->
between
<!-- table: two.md -->

words

<!-- end of table -->
"""


def test_blocks_are_replaced_by_their_files_and_nothing_else_changes(root):
    assert render(TEXT, root) == RENDERED


def test_rendering_again_changes_nothing(root):
    assert render(RENDERED, root) == RENDERED


def test_a_file_that_is_missing_is_named(root):
    (root / "two.md").unlink()
    with pytest.raises(ValueError, match=r"two\.md, which does not exist"):
        render(TEXT, root)


def test_one_section_of_a_file(root):
    (root / "two.md").write_text("# Heading\n\nwords\n\n## Dice, pruned\n\n| d |\n\n## Other\n\n| o |\n")
    block = "<!-- table: two.md | Dice, pruned -->\n{}<!-- end of table -->\n"
    assert render(block.format(""), root) == block.format("\n| d |\n\n")
    assert render(block.format("\n| d |\n\n"), root) == block.format("\n| d |\n\n")
    with pytest.raises(ValueError, match=r"'Dice' of two\.md, which has Dice, pruned, Other"):
        render(block.format("").replace(", pruned", ""), root)


def test_check_tells_and_changes_nothing(root, monkeypatch):
    pages = [root / page for page in render_readme.PAGES]
    for page in pages:
        page.write_text(TEXT)
    monkeypatch.setattr(render_readme, "render", lambda text: render(text, root))
    monkeypatch.setattr(render_readme, "REPOSITORY", root)
    monkeypatch.setattr(sys, "argv", ["render_readme.py", "--check"])
    assert render_readme.main() == 1
    assert [page.read_text() for page in pages] == [TEXT] * len(pages)
    monkeypatch.setattr(sys, "argv", ["render_readme.py"])
    assert render_readme.main() == 0
    assert [page.read_text() for page in pages] == [RENDERED] * len(pages)
    monkeypatch.setattr(sys, "argv", ["render_readme.py", "--check"])
    assert render_readme.main() == 0


@pytest.mark.parametrize("page", render_readme.PAGES)
def test_ours_are_up_to_date(page):
    text = (REPOSITORY / page).read_text()
    assert "<!-- table: " in text
    assert render(text) == text
