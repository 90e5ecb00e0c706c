"""Pages rendered from results, and that ours are up to date."""

import json
import re
import sys

import pytest
from huggingface_hub import ModelCard

from reg4pru.maintenance import render_readme
from reg4pru.maintenance.render_readme import REPOSITORY, render, rendered_pages

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
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
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


def test_numbers_within_a_sentence(root):
    (root / "two.md").write_text(
        "# Heading\n\n## Dice\n\n| as trained | 1.0 | 0.7 |\n| --- | ---: | ---: |\n| pruned | 0.9 ± 0.1 | 0.8 |\n\n"
        "## Time\n\n| variant | rate | × |\n|---|---|---|\n| **pruned** | 0.5 | 1.4 |\n| **pruned** | 0.7 | 1.2 |\n"
    )
    dice = "falls from <!-- value: two.md | Dice | pruned | 1.0 -->{}<!-- end --> to {}"
    time = "<!-- value: two.md | Time | pruned / 0.7 | × -->{}<!-- end -->"
    assert render(dice.format("0.1", time.format("")), root) == dice.format("0.9", time.format("1.2"))
    for place, problem in (
        ("two.md | Dice | dense | 1.0", "0 such rows"),
        ("two.md | Time | pruned | ×", "2 such rows"),
        ("two.md | Dice | pruned | 0.5", "the columns as trained, 1.0, 0.7"),
    ):
        with pytest.raises(ValueError, match=problem):
            render(f"<!-- value: {place} --><!-- end -->", root)
    with pytest.raises(ValueError, match="begins a line"):
        render(f"falls to\n{time}", root)


@pytest.fixture
def run(root, monkeypatch):
    """Runs the command on a repository of its own, with a card that needs no rendering."""
    monkeypatch.setattr(render_readme, "render", lambda text: render(text, root))
    monkeypatch.setattr(render_readme, "reference_card", lambda results: "# Card\n")
    monkeypatch.setattr(render_readme, "REPOSITORY", root)

    def start(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["render_readme.py", *arguments])
        return render_readme.main()

    return start


def test_check_names_what_is_out_of_date_and_changes_nothing(root, run, capsys):
    pages = [root / page for page in render_readme.PAGES]
    for page in pages:
        page.write_text(TEXT)
    assert run("--check") == 1
    said = capsys.readouterr().err
    assert all(f"{page} is out of date" in said for page in (*render_readme.PAGES, "model_card.md"))
    assert [page.read_text() for page in pages] == [TEXT] * len(pages)
    assert not (root / "model_card.md").exists()
    assert run() == 0
    assert [page.read_text() for page in pages] == [RENDERED] * len(pages)
    assert (root / "model_card.md").read_text() == "# Card\n"
    assert run("--check") == 0
    (root / "model_card.md").write_text("# Card, by hand\n")
    assert run("--check") == 1
    assert "model_card.md" in capsys.readouterr().err


def test_ours_are_up_to_date():
    pages = rendered_pages()
    assert [path.name for path, text in pages.items() if path.read_text() != text] == []
    for page in render_readme.PAGES:
        assert re.search("<!-- (table|value): ", pages[REPOSITORY / page]), page


def test_the_card_of_the_reference_model_says_what_the_records_do():
    card = (REPOSITORY / "model_card.md").read_text()
    folder = REPOSITORY / "results" / "pretrained" / "runs" / "distill_drift" / "seed-0"
    pooled = json.loads((folder / "evaluation.json").read_text())["as trained"]
    for rate, metrics in pooled.items():
        assert f"| {rate} | {metrics['average_precision']:.3f} | {metrics['dice']:.3f} |" in card
    metadata = ModelCard(card).data
    assert (metadata.base_model, metadata.license) == ("facebook/dinov2-small", "apache-2.0")
    assert "CC BY 4.0" in card
    assert "not a medical device" in card
    assert "../" not in card
