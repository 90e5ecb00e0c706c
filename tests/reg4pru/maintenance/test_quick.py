"""What `make quick` says at its end."""

import json

from reg4pru.maintenance.quick import summary


def test_the_summary_says_what_the_files_do(tmp_path):
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "masks").mkdir()
    results = {
        rate: {"num_images": 2, "pooled": {"average_precision": precision}}
        for rate, precision in (("1.0", 0.8594), ("0.5", 0.8421))
    }
    (tmp_path / "evaluated/metrics.json").write_text(json.dumps({"results": results}))
    rows = ["a,1.0,100", "a,0.5,60", "b,1.0,100", "b,0.5,64"]
    (tmp_path / "masks/predictions.csv").write_text("\n".join(["file,keep_rate,num_tokens", *rows]))
    for name in ("b_overlay_0.5.png", "a_overlay_1.0.png", "a_overlay_0.5.png"):
        (tmp_path / "masks" / name).touch()
    said = summary(tmp_path)
    assert "2 images" in said
    assert "0.859 unpruned, and 0.842" in said
    assert "62% of them" in said
    assert str(tmp_path / "masks/a_overlay_0.5.png") in said
    assert str(tmp_path / "run/last") in said
