import pytest

from reg4pru.common.spread import spread


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [(7, 3, [0, 3, 6]), (8, 3, [0, 4, 7]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (5, 1, [0]), (0, 4, [])],
)
def test_evenly_spaced_from_the_first_to_the_last(count, wanted, chosen):
    assert spread(count, wanted) == chosen
