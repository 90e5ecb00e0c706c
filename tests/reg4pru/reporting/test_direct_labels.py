"""Names beside lines: each once, none over another, inside the frame where there is room."""

from itertools import combinations

from matplotlib.transforms import Bbox

from reg4pru.reporting.direct_labels import label_points
from reg4pru.reporting.style import new_figure


def test_names_cover_neither_each_other_nor_lines():
    figure = new_figure(4, 3)
    axis = figure.subplots()
    points = {"first": (1.0, 1.0), "second": (1.05, 1.0), "third": (1.0, 1.04), "at the edge": (1.9, 1.0)}
    for x, y in points.values():
        axis.plot(x, y, "o")
    axis.set(xlim=(0, 2), ylim=(0, 2))
    label_points(axis, [(name, [point], "black") for name, point in points.items()], fontsize=8)
    assert [text.get_text() for text in axis.texts] == list(points)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(Bbox.intersection(one, other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= axis.get_window_extent().x1 for box in boxes)
    middles = axis.transData.transform(list(points.values()))
    assert not any(box.contains(*middle) for box in boxes for middle in middles)


def test_a_name_stands_beside_the_point_with_most_room():
    figure = new_figure(4, 3)
    axis = figure.subplots()
    axis.plot([0.2, 1.8], [1.0, 1.0], "o-")
    for step in range(40):  # no room on the left
        axis.plot([0.0, 0.6], [0.5 + step / 40, 0.5 + step / 40])
    axis.set(xlim=(0, 2), ylim=(0, 2))
    label_points(axis, [("name", [(0.2, 1.0), (1.8, 1.0)], "black")], fontsize=8)
    assert axis.texts[0].xy == (1.8, 1.0)
