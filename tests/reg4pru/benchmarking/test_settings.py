"""Which settings `reg4pru tune` measures, and which of them no other beats."""

from reg4pru.benchmarking.tuning import Setting, pareto_front, settings_to_measure

GRID = (1.0, 0.7, 0.5)


def test_unpruned_is_measured_once():
    settings = settings_to_measure(2, GRID, [4, 5], ["active", "all"], ["image", "tile"])
    assert len(settings) == 1 + 2 * 2 * 2 * 2
    assert settings[0] == Setting((1.0, 1.0), 4, "active", "image")
    assert settings[1:9] == [
        Setting((0.7, 0.7), layer, pool, allocation)
        for layer in (4, 5)
        for pool in ("active", "all")
        for allocation in ("image", "tile")
    ]
    assert len(set(settings)) == len(settings)


def test_pareto_front():
    points = [(5.0, 0.9), (1.0, 0.5), (2.0, 0.7), (3.0, 0.7), (2.0, 0.6), (4.0, 0.95)]
    assert pareto_front(points) == [1, 2, 5]
    assert pareto_front([(1.0, 0.5)]) == [0]
