"""`reg4pru.pruning.agreement_with`: what the report says of a level, said of any other checkpoint."""

import json

import pytest

from reg4pru import prune
from reg4pru.pruning import agreement_with


def test_it_says_of_a_pruned_checkpoint_what_its_report_says(flags, labelled, tmp_path):
    data = ["--dataset", str(labelled)]
    prune.main([*flags[:2], *flags[4:], *data, "--report_side", "test"])
    results = json.loads((tmp_path / "out" / "prune_results.json").read_text(encoding="utf-8"))
    models = ["--dense_name_or_path", str(tmp_path / "eomt"), "--model_name_or_path", str(tmp_path / "out")]
    wanted = [*models, *data, "--keep_rates", "1.0", "0.4", "--output", str(tmp_path / "agreement.json")]
    agreement_with.main(wanted)
    found = json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8"))
    assert found["mean_iou"]["1.0"] == 1.0
    assert found["mean_iou"]["0.4"] == pytest.approx(results["agreement"]["calibrated"]["0.4"]["mean_iou"])
    assert found["num_images"] == 3
    assert found["provenance"]["versions"]
    with pytest.raises(SystemExit):  # what is there is not overwritten
        agreement_with.main(wanted)
    assert json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8")) == found
