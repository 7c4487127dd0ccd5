"""What the paper's figures show: which curves, which colours, and what their captions count."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delving.artefact import Run
from delving.detect import metric
from delving.paper import detection
from delving.paper.figure3 import colors_of, draw_inits
from delving.paper.figure4 import _count
from delving.paper.signal import draw_signal
from delving.plot import GREEN, GREY, RED


@given(st.randoms(use_true_random=False))
def test_a_drawn_detection_is_coloured_as_vocs_metric_counts_it(random):
    def box():
        x, y = random.randrange(4), random.randrange(4)
        return [x, y, x + random.randrange(3, 6), y + random.randrange(3, 6)]

    objects = [[random.choice("ab"), box(), random.random() < 0.3] for _ in range(4)]
    found = [[random.choice("ab"), random.randrange(5) / 4, box()] for _ in range(6)]
    labels, scores, boxes = (np.array(column) for column in zip(*found, strict=True))
    truth = metric.Objects(np.array([box for _, box, _ in objects]),
                           np.array(["ab".index(name) for name, _, _ in objects]),
                           np.array([difficult for *_, difficult in objects]))  # fmt: skip
    every = metric.Detections(np.zeros(6, int), np.array(["ab".index(n) for n in labels]),
                              scores, boxes)  # fmt: skip
    expected = {}
    for label in (0, 1):
        places = np.flatnonzero(every.label == label)
        order = places[np.argsort(-scores[places], kind="stable")]
        for place, right, wrong in zip(order, *metric.match(every, [truth], label), strict=True):
            expected[int(place)] = GREEN if right else RED if wrong else GREY
    colors = detection._colors({"found": found, "objects": objects})
    assert dict(enumerate(colors)) == expected


def test_a_net_that_was_tested_more_often_is_drawn_as_often_as_the_others_and_to_its_end(tmp_path):
    def net(epochs, error):
        looks = pd.DataFrame({"epoch": epochs, "top1_err": np.full(len(epochs), error)})
        return _net(looks, epochs=[1.0, 2.5], departure=math.inf)

    figure = draw_inits({"he": [net(np.arange(0.25, 2.51, 0.25), 40.0), net([1.0, 2.0, 2.5], 60.0)],
                         "xavier": []})  # fmt: skip
    often, rarely = figure.axes[0].lines
    assert often.get_xdata().tolist() == rarely.get_xdata().tolist() == [0.0, 1.0, 2.0, 2.5]
    assert [note.xy for note in figure.axes[0].texts] == [(2.5, 50.0)]


def _net(looks, *, epochs, departure):
    """A stand-in for a run of 100 steps an epoch, with what a figure draws of it."""
    steps = pd.DataFrame({"epoch": epochs, "step": np.multiply(epochs, 100),
                          "conv_grad_norm": 1.0, "conv_decay_norm": 0.1})  # fmt: skip
    run = SimpleNamespace(looks=looks, steps=steps, logged=True, blind_loss=math.log(4))
    run.departure, run.looks_each = departure, partial(Run.looks_each, run)
    return run


@pytest.mark.parametrize(
    ("departures", "drawn", "label"),
    [
        ((50, 100), 4.0, "epoch, the first 4 of 75"),  # Figure 2's place in the paper's training
        ((20, 30), 2.0, "epoch, the first 2 of 75"),  # the fewest looks that can be seen
        ((50, math.inf), 75.0, "epoch"),  # one stalls: how long it does is the point
        ((50, 1000), 75.0, "epoch"),  # it would be most of it anyway
    ],
)
def test_of_a_long_training_in_which_all_nets_soon_learn_the_beginning_is_drawn(
    departures, drawn, label
):
    epochs = np.arange(0.25, 75.01, 0.25)
    looks = pd.DataFrame({"epoch": epochs + 0.004, "top1_err": 50.0})
    he, xavier = (_net(looks, epochs=epochs, departure=step) for step in departures)
    figure = draw_inits({"he": [he], "xavier": [xavier]})
    for axes in figure.axes:
        assert {round(line.get_xdata()[-1]) for line in axes.lines} == {drawn}
        assert axes.get_xlabel() == label


def test_an_initialiser_has_one_colour_in_every_figure():
    every = colors_of(["he", "he_backward", "xavier", "gaussian", "own", "other"])
    assert len(set(every.values())) == 6
    for some in (["he", "xavier"], ["xavier", "gaussian"], ["he_backward", "own"]):
        assert colors_of(some) == {init: every[init] for init in some}


def test_the_signal_of_a_gaussian_alone_is_drawn_too():
    layer = {f"{key}_{part}": 0.0 for key in ("y2", "dx2") for part in ("spread", "here")}
    layers = [layer | {"y2_measured": -14.0 * i, "dx2_measured": 14.0 * i} for i in range(4)]
    figure = draw_signal({"small14": {"gaussian": {"layers": layers}}})
    low, high = figure.axes[0].get_ylim()
    assert low < -42
    assert high > 0


def test_it_is_told_how_many_images_have_no_picture():
    assert _count(12, 12).endswith("classifies correctly")
    assert _count(10, 12).endswith("; 2 of them have none")
