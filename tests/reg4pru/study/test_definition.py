"""Reading a study: what a variant becomes, and that every mistake is found before any run."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from reg4pru.common.recipes import PACKAGE
from reg4pru.study.definition import evaluation_name, read_study

STUDIES = PACKAGE / "studies"
STUDY = {
    "recipe": "tiny_synthetic",
    "overrides": {"max_train_steps": 5},
    "config": {"token_multiple": 4},
    "seeds": [0, 3],
    "keep_rates": [1.0, 0.5],
    "evaluations": [{"selection_pool": "all"}, {"selector": "random"}],
    "compare": ["dense", "drawn"],
    "variants": {
        "dense": {"label": "no pruning", "config": {"train_pruning": "none", "routing": False}},
        "drawn": {"config": {"train_pruning": "hard"}, "flags": {"keep_rate_range": [0.5, 0.9]}},
    },
}


@pytest.fixture
def write(tmp_path):
    """Writes STUDY with changed fields; a field that is None is left out."""

    def write_study(**changes) -> Path:
        path = tmp_path / "small.yaml"
        content = {name: value for name, value in {**STUDY, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        return path

    return write_study


def test_a_run_is_the_recipe_with_the_settings_of_study_and_variant(write):
    study = read_study(write())
    recipe = study.run_recipe("drawn", 3)
    base = yaml.safe_load(Path(STUDIES.parent / "recipes" / "tiny_synthetic.yaml").read_text(encoding="utf-8"))
    config = base.pop("config_overrides") | {"token_multiple": 4, "train_pruning": "hard"}
    assert recipe.pop("config_overrides") == config
    assert recipe == base | {"max_train_steps": 5, "keep_rate_range": [0.5, 0.9], "seed": 3}
    assert study.run_recipe("dense", 3)["keep_rate_range"] == base["keep_rate_range"]
    assert study.variants["drawn"]["label"] == "drawn"


def test_a_field_that_is_null_is_left_at_its_default(write):
    study = read_study(write(config={"num_blocks": None, "routing_window": [1, 2]}))
    config = study.run_recipe("drawn", 0)["config_overrides"]
    assert "num_blocks" not in config
    assert config["routing_window"] == [1, 2]


def test_runs_go_seed_by_seed(write):
    study = read_study(write())
    assert study.runs() == [("dense", 0), ("drawn", 0), ("dense", 3), ("drawn", 3)]


def test_a_part_of_a_study_is_a_study(write):
    study = read_study(write(compare=["dense", "drawn"]))
    assert study.part() == study
    part = study.part(["drawn"], [3])
    assert part.runs() == [("drawn", 3)]
    assert (study.compare, part.compare) == (["dense", "drawn"], [])
    assert study.part(["drawn", "dense"]).compare == study.compare
    with pytest.raises(ValueError, match="--only names soft: small has dense, drawn"):
        study.part(["drawn", "soft"])
    with pytest.raises(ValueError, match="--seeds names 1, 2: small has 0, 3"):
        study.part(seeds=[0, 2, 1])


def test_a_variant_may_have_the_first_seeds_only(write):
    variants = STUDY["variants"] | {"drawn": {"num_seeds": 1}}
    study = read_study(write(variants=variants))
    assert study.runs() == [("dense", 0), ("drawn", 0), ("dense", 3)]
    assert study.part(seeds=[0]).runs() == [("dense", 0), ("drawn", 0)]
    assert list(study.part(seeds=[3]).variants) == ["dense"]
    with pytest.raises(ValueError, match="--only and --seeds leave no run: none of drawn has these seeds"):
        study.part(["drawn"], [3])
    alone = read_study(write(variants={"drawn": {"num_seeds": 1}}, compare=None))
    with pytest.raises(ValueError, match="leave no run: none of drawn has"):
        alone.part(seeds=[3])


def test_the_trained_model_is_always_evaluated_as_it_is(write):
    assert list(read_study(write()).evaluations) == ["as trained", "selection_pool=all", "selector=random"]
    assert evaluation_name({"selection_pool": "all", "reactivation_layer": 7}) == (
        "selection_pool=all, reactivation_layer=7"
    )


def test_an_evaluation_on_other_images_is_made_where_they_are(write, monkeypatch, caplog):
    monkeypatch.setenv("THERE", "some/folder")
    monkeypatch.delenv("NOWHERE", raising=False)
    others = [{"name": name, "dataset": f"${name.upper()}", "split": "sample"} for name in ("there", "nowhere")]
    study = read_study(write(evaluations=others))
    assert study.evaluations == {"as trained": {}, "there": {"dataset": "some/folder", "split": "sample"}}
    assert "Not evaluated on nowhere: $NOWHERE is not set." in caplog.text


def test_a_study_says_only_what_differs_from_its_base(write, tmp_path):
    base = write()
    (tmp_path / "longer.yaml").write_text(
        yaml.safe_dump(
            {
                "base": str(base),
                "overrides": {"eval_steps": 9},
                "config": {"routing_keep_rate": 0.3},
                "seeds": [7],
                "compare": [],
                "variants": ["drawn"],
            }
        )
    )
    study = read_study(tmp_path / "longer.yaml")
    whole = read_study(
        write(
            overrides={"max_train_steps": 5, "eval_steps": 9},
            config={"token_multiple": 4, "routing_keep_rate": 0.3},
            seeds=[7],
            compare=[],
            variants={"drawn": STUDY["variants"]["drawn"]},
        )
    )
    assert study == replace(whole, name="longer")


def test_a_variant_of_the_base_with_other_settings(write, tmp_path):
    derived = tmp_path / "derived.yaml"
    derived.write_text(
        yaml.safe_dump({"base": str(write()), "seeds": [0, 1], "variants": ["dense", {"drawn": {"num_seeds": 1}}]})
    )
    study = read_study(derived)
    assert study.runs() == [("dense", 0), ("drawn", 0), ("dense", 1)]
    assert study.variants["drawn"]["config"] == read_study(write()).variants["drawn"]["config"]


def test_a_base_that_does_not_fit(write, tmp_path):
    content = {"base": str(tmp_path / "none.yaml")}
    derived = tmp_path / "derived.yaml"
    derived.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"There is no file \S+none\.yaml"):
        read_study(derived)
    derived.write_text(yaml.safe_dump({"base": str(write()), "variants": ["dense", "soft"]}))
    with pytest.raises(ValueError, match="names soft: the variants of its base are dense, drawn"):
        read_study(derived)
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"base": str(derived)}))
    with pytest.raises(ValueError, match=r"`base` of .*second\.yaml is .*derived\.yaml, which has a base itself"):
        read_study(tmp_path / "second.yaml")


def test_environment_variables(write, monkeypatch):
    monkeypatch.setenv("IMAGES", "/data/fives")
    path = write(overrides={"dataset": "$IMAGES/all"})
    assert read_study(path).recipe["dataset"] == "/data/fives/all"
    monkeypatch.delenv("IMAGES")
    with pytest.raises(ValueError, match=r"\$IMAGES/all, and this environment variable is not set"):
        read_study(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": {}}, "has variant: it may have recipe"),
        ({"seeds": None}, "has no seeds"),
        ({"seeds": [1, 1]}, r"`seeds` .* is \[1, 1\]"),
        ({"seeds": [-1]}, r"`seeds` .* is \[-1\]"),
        ({"recipe": "recipes/none.yaml"}, "There is no file recipes/none.yaml"),
        ({"keep_rates": [1.0, 0.0]}, "contain 0.0"),
        ({"overrides": ["max_steps"]}, r"`overrides` of .* is \['max_steps'\]: it must be a mapping"),
        ({"overrides": {"max_steps": 5}}, "has max_steps: it may have"),
        ({"overrides": {"seed": 5}}, "has seed: it may have"),
        ({"evaluations": [{"pool": "all"}]}, "has pool: it may have name, selection_pool"),
        ({"evaluations": [{"selector": "mlp"}]}, "selector 'mlp': it can only be 'random'"),
        ({"evaluations": [{"selection_pool": "some"}]}, "variant dense, evaluated selection_pool=some,"),
        ({"evaluations": [{"reactivation_layer": 0}]}, "every stage must come before it"),
        ({"evaluations": [{"dataset": "here"}]}, "on here has no name: give it one"),
        ({"evaluations": [{"name": "other", "split": "sample"}]}, "split 'sample' but no dataset"),
        ({"evaluations": [{"selector": "random"}] * 2}, "has selector=random more than once"),
        ({"evaluations": [{"working_size": 0}]}, "working_size 0: it must be a positive number of pixels"),
        ({"compare": ["dense", "soft"]}, "must name two of dense, drawn"),
        ({"variants": ["dense"]}, "`variants` of .* names dense: the variants of its base are none"),
        ({"variants": {"a/b": {}}}, "has a variant 'a/b'"),
        ({"variants": {"a": {"setting": 1}}}, "The variant a .* has setting: it may have label, config, flags"),
        ({"variants": {"a": {"num_seeds": 0}}}, "`num_seeds` of the variant a is 0: the study has 2"),
        ({"variants": {"a": {"num_seeds": 3}}}, "`num_seeds` of the variant a is 3: the study has 2"),
        ({"variants": {"a": {"flags": {"lr": 1}}}, "compare": []}, "`flags` of the variant a has lr"),
        ({"variants": {"a": {"config": {"prune": 1}}}, "compare": []}, "The configuration of the variant a has prune"),
        ({"variants": {"a": {"config": {"train_pruning": "all"}}}, "compare": []}, "`train_pruning` is 'all'"),
    ],
)
def test_mistakes(write, changes, message):
    with pytest.raises(ValueError, match=message):
        read_study(write(**changes))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_study(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository(path, monkeypatch):
    for name in ("FIVES_DIR", "CAMVID_DIR", "DINOV2_DIR"):
        monkeypatch.setenv(name, "/data")
    assert read_study(path).runs()
