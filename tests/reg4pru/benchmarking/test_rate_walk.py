"""Which settings are measured, and which of them nothing beats."""

from reg4pru.benchmarking.keep_rate_search import Setting, greedy_walk, pareto_front, uniform_settings, walk_length

GRID = (1.0, 0.7, 0.5)


def test_uniform_settings_hold_unpruned_once():
    settings = uniform_settings(2, GRID, [4, 5], ["active", "all"])
    assert len(settings) == 1 + 2 * 2 * 2
    assert settings[0] == Setting((1.0, 1.0), 4, "active")
    assert all(setting.is_uniform for setting in settings)
    assert len(set(settings)) == len(settings)


def test_the_walk_prunes_first_where_it_hurts_least():
    """The first stage costs ten times the quality of the second; the later layer costs next to nothing."""
    measured = []

    def quality(setting: Setting) -> float:
        measured.append(setting)
        first, second = setting.keep_rates
        later = setting.reactivation_layer == 5 and min(setting.keep_rates) < 1
        return 10 * first + second - 0.001 * later + 0.01 * (setting.selection_pool == "all")

    def cost(setting: Setting) -> float:
        return sum(setting.keep_rates) - 0.1 * (setting.reactivation_layer == 5 and min(setting.keep_rates) < 1)

    path = greedy_walk(2, GRID, [4, 5], ["active", "all"], quality, cost)

    assert [setting.keep_rates for setting in path] == [
        (1.0, 1.0), (1.0, 0.7), (1.0, 0.7), (1.0, 0.5), (0.7, 0.5), (0.5, 0.5)
    ]  # fmt: skip
    assert [setting.reactivation_layer for setting in path] == [4, 4, 5, 5, 5, 5]
    assert {setting.selection_pool for setting in path[1:]} == {"all"}
    assert len(set(measured)) <= walk_length(2, GRID, [4, 5], ["active", "all"]) + 1


def test_a_rate_that_saves_nothing_is_passed_over():
    def cost(setting: Setting) -> float:
        return 1.0 if setting.keep_rates[0] > 0.6 else 0.5

    path = greedy_walk(1, GRID, [4], ["active"], lambda setting: setting.keep_rates[0], cost)
    assert [setting.keep_rates for setting in path] == [(1.0,), (0.5,)]


def test_pareto_front():
    points = [(5.0, 0.9), (1.0, 0.5), (2.0, 0.7), (3.0, 0.7), (2.0, 0.6), (4.0, 0.95)]
    assert pareto_front(points) == [1, 2, 5]
    assert pareto_front([(1.0, 0.5)]) == [0]
