"""Which settings `reg4pru tune` measures, and which of them no other beats."""

from reg4pru.benchmarking.tuned_settings import Setting, pareto_front, settings_to_measure

GRID = (1.0, 0.7, 0.5)


def test_unpruned_is_measured_once_with_each_overlap_and_engine():
    settings = settings_to_measure(2, GRID, [4, 5], ["active", "all"], ["image", "tile"], [14, 0], ["float32", "onnx"])
    assert len(settings) == 2 * (1 + 2 * 2 * 2 * 2) + 2 * (1 + 2 * 2 * 2)
    assert settings[0] == Setting((1.0, 1.0), 4, "active", "image", 14, "float32")
    assert settings[1:9] == [
        Setting((0.7, 0.7), layer, pool, allocation, 14, "float32")
        for layer in (4, 5)
        for pool in ("active", "all")
        for allocation in ("image", "tile")
    ]
    assert {setting.allocation for setting in settings if setting.engine == "onnx"} == {"tile"}
    assert len(set(settings)) == len(settings)


def test_pareto_front():
    points = [(5.0, 0.9), (1.0, 0.5), (2.0, 0.7), (3.0, 0.7), (2.0, 0.6), (4.0, 0.95)]
    assert pareto_front(points) == [1, 2, 5]
    assert pareto_front([(1.0, 0.5)]) == [0]
