"""Figures: labels that do not cover each other, and the same file for the same picture."""

from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delving.plot import _spread, end_at_last, label_lines, new_figure, save_figure

places = st.lists(st.floats(-500, 500, allow_subnormal=False), min_size=1, max_size=8)


@given(places)
def test_labels_stay_in_order_and_apart(at):
    found = _spread(at, 11)
    ranked = sorted(range(len(at)), key=lambda i: at[i])
    assert all(found[b] - found[a] >= 11 - 1e-6 for a, b in pairwise(ranked))


@given(places)
def test_labels_move_up_as_far_as_down(at):
    assert fmean(_spread(at, 11)) == pytest.approx(fmean(at), abs=1e-6)


def test_labels_that_are_apart_stay_where_their_lines_end():
    assert _spread([0, 50, 20], 11) == [0, 50, 20]


def test_two_lines_that_end_together_get_two_places():
    _, ((axes,),) = new_figure(1, 1, size=(3, 2))
    axes.plot([0, 1], [0, 1])
    label_lines(axes, [(1, 1, "a", "black"), (1, 1, "b", "black")])
    shifts = [note.xyann[1] for note in axes.texts]
    assert abs(shifts[0] - shifts[1]) == pytest.approx(11)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_no_label_lies_on_the_x_axis_or_on_another(heights):
    _, ((axes,),) = new_figure(1, 1, size=(3, 2))
    axes.set_ylim(0, 1)
    label_lines(axes, [(1, y, "a", "black") for y in heights])
    per_unit = axes.transData.transform([(0, 0), (0, 1)])[:, 1] * 72 / axes.figure.dpi
    middles = sorted(
        y * (per_unit[1] - per_unit[0]) + note.xyann[1]
        for y, note in zip(heights, axes.texts, strict=True)
    )
    assert middles[0] >= 5.5 - 1e-6
    assert all(b - a >= 11 - 1e-6 for a, b in pairwise(middles))


@pytest.mark.parametrize(
    ("last", "ticks"), [(36.0038, [0, 10, 20, 30]), (12, [0, 2, 4, 6, 8, 10, 12]), (0.5, None)]
)
def test_no_tick_stands_beyond_the_last_epoch(last, ticks):
    _, ((axes,),) = new_figure(1, 1, size=(3, 2))
    axes.plot([last / 4, last], [1, 2])
    axes.axhline(1.5)
    end_at_last(axes, room=0.2)
    found = list(axes.get_xticks())
    assert ticks is None or found == ticks
    assert len(found) > 2
    assert max(found) <= last < axes.get_xlim()[1]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_picture_is_the_same_file(tmp_path, ending):
    files = []
    for name in ("one", "two"):
        figure, ((axes,),) = new_figure(1, 1, size=(3, 2))
        axes.plot([0, 1], [0, 1])
        files.append(save_figure(figure, tmp_path / f"{name}.{ending}").read_bytes())
    assert files[0] == files[1]
