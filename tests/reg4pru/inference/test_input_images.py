"""Which images are predicted, and how the names of their results begin."""

from pathlib import Path

import pytest
from PIL import Image

from reg4pru.inference.input_images import distinct_stems, list_files
from reg4pru.inference.output_folder import Task


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes images by their paths below the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(name, format="PNG")

    return make


def stems(*patterns: str) -> dict[str, str]:
    return {image.name: image.stem for image in list_files(list(patterns), Path("out"))}


def test_equal_names_of_several_folders_are_told_apart(make):
    make("p1/OD.jpg", "p2/OD.jpg", "p2/OS.jpg")
    assert stems("p*/*.jpg") == {"p1/OD.jpg": "p1_OD", "p2/OD.jpg": "p2_OD", "p2/OS.jpg": "OS"}
    assert stems("p1") == {"p1/OD.jpg": "OD"}


def test_equal_names_of_one_folder_are_told_apart_by_their_suffixes(make):
    make("a/1.png", "a/1.jpg", "b/1.png")
    assert stems("a", "b") == {"a/1.png": "1_png", "a/1.jpg": "1_jpg", "b/1.png": "b_1"}


def test_names_that_another_file_has_already(make):
    make("a/x.png", "b/x.png", "c/a_x.png")
    found = stems("a", "b", "c")
    assert len(set(found.values())) == 3


def test_deeper_folders(make):
    make("1/left/x.png", "2/left/x.png", "2/right/x.png")
    found = stems("**/*.png")
    assert found == {"1/left/x.png": "1_left_x", "2/left/x.png": "2_left_x", "2/right/x.png": "right_x"}


def test_one_file_under_two_names_is_one_image(make, tmp_path):
    make("a/x.png")
    Path("b").mkdir()
    Path("b/y.png").symlink_to(tmp_path / "a/x.png")
    assert stems("a", str(tmp_path / "a"), "b") == {"a/x.png": "x"}


@pytest.mark.parametrize("folder", ["data [v2]", "a::b", "50%", "star*", "q?"])
def test_folders_whose_names_look_like_patterns(make, folder):
    make(f"{folder}/x.png", f"{folder}/deep [1]/y.png")
    assert list(stems(folder)) == [f"{folder}/x.png"]
    assert list(stems(f"{folder}/*.png")) == [f"{folder}/x.png"]
    assert sorted(stems(f"{folder}/**/*.png")) == [f"{folder}/deep [1]/y.png", f"{folder}/x.png"]


def test_patterns_do_not_find_results(make):
    make("tree/a/x.png", "tree/masks/x_mask.png", "tree/other/x_mask.png")
    Path("tree/masks/predictions.json").touch()
    assert sorted(stems("tree/**/*.png")) == ["tree/a/x.png", "tree/other/x_mask.png"]


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(ValueError, match="predict them apart"):
        distinct_stems([Path("a/x.a.png"), Path("a/x_a.png"), Path("a/x.a.jpg"), Path("a/x_a.jpg")])


@pytest.mark.parametrize(
    ("name", "problem"), [("l" * 230 + ".png", "have 252 bytes, and may have 255"), ("M\udcfc.png", "not UTF-8")]
)
def test_names_under_which_nothing_can_be_written(make, name, problem):
    make("x.png")
    (image,) = list_files(["x.png"], Path("out"))
    said = Task(image._replace(name=name, stem=name.removesuffix(".png")), 0.5).name_problem()
    assert said is None if "252" in problem else problem in said
    assert "shorten" in Task(image._replace(stem="l" * 250), None).name_problem()
