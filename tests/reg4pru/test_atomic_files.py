"""Files that are whole or not there."""

import pytest

from reg4pru.common.atomic_files import replace_table, replace_text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.md"
    replace_text(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half of it" + "\ud800")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("table.md", "Größe\n".encode())]
    replace_text(path, "new\n")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("table.md", "new\n")]


def test_rows_in_the_order_of_the_fields(tmp_path):
    path = tmp_path / "table.csv"
    replace_table(path, ("name", "value"), [{"value": 0.5, "name": "a, b"}, {"name": "c", "value": 1}])
    assert path.read_text() == 'name,value\n"a, b",0.5\nc,1\n'
    with pytest.raises(ValueError, match="other"):
        replace_table(path, ("name",), [{"name": "a", "other": 1}])
    assert len(list(tmp_path.iterdir())) == 1
