"""A run as artefacts read it, and what they print of it."""

import math

import numpy as np
import pytest
from fabricate import BLIND, CLASSES, EVERY, IMAGES, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from delving import paper, record
from delving.artefact import Asked, Run, differences, mean_and_spread, printed, published

some = settings(max_examples=40)


def run_of(folder, **told):
    return Run(make_run(folder, **told))


def run_with_losses(folder, losses, errors=None):
    """A run whose log has exactly these losses, one every 10 steps."""
    steps = range(10, 10 * len(losses) + 1, 10)
    return make_log(folder, steps, loss=losses, err=errors or [0.0] * len(losses))


def make_log(folder, steps, **values):
    """A run whose log has a line at each of these steps, with these values."""
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").unlink(missing_ok=True)
    record.append_event(folder / "log.jsonl", {"event": "start", "classes": CLASSES})
    for n, step in enumerate(steps):
        event = {"event": "step", "step": step, "epoch": step / 10, "loss": 1.0}
        event |= {"conv_grad_norm": 1.0, "conv_decay_norm": 0.1}
        event |= {key: each[n] for key, each in values.items()}
        record.append_event(folder / "log.jsonl", event)
    return Run(folder)


# --- its own file ---
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, "conf/paper/wrong.yaml has no delving/paper/wrong.py"),
        ("import nosuch", "delving/paper/wrong.py: ModuleNotFoundError: No module named 'nosuch'"),
        ("def show(:", "delving/paper/wrong.py: SyntaxError: invalid syntax (wrong.py, line 1)"),
    ],
)
def test_an_artefact_whose_file_lacks_or_fails_is_told_by_its_file(
    own_conf, tmp_path, monkeypatch, delving, code, told
):
    (own_conf / "paper" / "wrong.yaml").write_text("place: 200\n")
    monkeypatch.setattr("delving.request.CONF", own_conf)
    monkeypatch.setattr(paper, "__path__", [*paper.__path__, str(tmp_path)])
    if code:
        (tmp_path / "wrong.py").write_text(code)
    words = ["reproduce", "wrong", "scale=smoke", f"output_root={tmp_path / 'outputs'}"]
    assert delving(*words) == (2, "", f"delving: {told}\n")


# --- when a net begins to learn ---
def test_a_net_departs_by_the_step_from_which_its_loss_stays_below_chance(tmp_path):
    low, high = 0.9 * BLIND, BLIND
    cases = {
        (high, high, low, low): 30,
        (high, low, high, low, low): 40,  # a single low loss does not count
        (low, low): 10,
        (high, high): math.inf,
        (low, low, high): math.inf,  # it came back
    }
    for losses, step in cases.items():
        assert run_with_losses(tmp_path, losses).departure == step


def test_to_be_two_percent_below_chance_is_to_have_departed(tmp_path):
    assert run_with_losses(tmp_path, [0.981 * BLIND]).departure == math.inf
    assert run_with_losses(tmp_path, [0.979 * BLIND]).departure == 10


@some
@given(below=st.lists(st.booleans(), min_size=1, max_size=30))
def test_after_its_departure_a_loss_is_never_at_chance_again(tmp_path_factory, below):
    folder = tmp_path_factory.mktemp("run")
    left = run_with_losses(folder, [BLIND / 2 if b else BLIND for b in below]).departure
    first = len(below) if math.isinf(left) else int(left / 10) - 1
    assert all(below[first:])
    assert first == 0 or not below[first - 1]


def test_chance_is_that_of_the_runs_own_classes(tmp_path):
    assert run_of(tmp_path).blind_loss == pytest.approx(math.log(CLASSES))


# --- the numbers of a run ---
def test_the_training_error_is_the_mean_over_the_last_tenth(tmp_path):
    errors = [90.0] * 18 + [30.0, 50.0]
    assert run_with_losses(tmp_path, [1.0] * 20, errors).training_error == 40.0


def test_each_step_counts_alike_however_many_a_line_averages(tmp_path):
    """A log's last line is often of fewer steps."""
    run = make_log(tmp_path, [10, 20, 30, 36], err=[90.0, 60.0, 60.0, 10.0])
    assert run.mean(run.steps.err) == pytest.approx((10 * 90 + 20 * 60 + 6 * 10) / 36)
    assert run.mean(run.steps.err[run.steps.step > 20]) == pytest.approx((10 * 60 + 6 * 10) / 16)


def test_a_short_runs_training_error_is_its_last_lines(tmp_path):
    assert run_with_losses(tmp_path, [1.0] * 3, [90.0, 80.0, 70.0]).training_error == 70.0


def test_a_run_tells_its_errors_and_nan_where_it_was_not_scored(tmp_path):
    run = run_of(tmp_path, errors={"ten_view": 20.0, "dense": 18.0})
    assert run.protocols == ["ten_view", "dense"]
    assert (run.error("ten_view"), run.error("dense", 5)) == (20.0, 9.0)
    assert math.isnan(run.error("center"))


def test_a_runs_log_is_told_as_tables(tmp_path):
    run = run_of(tmp_path, steps=200, validation=33.0)
    assert list(run.steps.step) == list(range(EVERY, 201, EVERY))
    assert list(run.looks.top1_err) == [33.0, 33.0]


def test_a_run_that_diverged_before_its_first_line_says_so(tmp_path):
    run = run_of(tmp_path / "poor-s0", steps=0, status="diverged", errors={})
    assert math.isnan(run.training_error)
    for table in ("steps", "looks"):
        with pytest.raises(ValueError, match="poor-s0: diverged before anything was logged"):
            getattr(run, table)


@some
@given(ranks=st.lists(st.integers(0, 9), min_size=1, max_size=70))
def test_hits_come_back_as_they_were_for_any_number_of_images(tmp_path_factory, ranks):
    folder, ranks = tmp_path_factory.mktemp("run"), np.array(ranks)
    record.save_ranks(folder, "dense@60", ranks)
    for k in (1, 5):
        hits = Run(folder).hits("dense@60", k)
        assert hits.dtype == bool
        assert hits.tolist() == (ranks < k).tolist()


def test_hits_agree_with_the_error_told(tmp_path):
    hits = run_of(tmp_path, errors={"dense": 23.5}).hits("dense")
    assert (len(hits), 100 * (1 - hits.mean())) == (IMAGES, pytest.approx(23.5))


def test_hits_that_are_not_there_or_damaged_are_named(tmp_path):
    run = run_of(tmp_path)
    with pytest.raises(ValueError, match=r"dense\.hits\.npz tells no hits"):
        run.hits("dense")
    (tmp_path / "eval" / "ten_view.hits.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"ten_view\.hits\.npz tells no hits"):
        run.hits("ten_view")


@some
@given(
    slopes=st.dictionaries(
        st.sampled_from(["conv1", "conv2", "fc1"]),
        st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=1, max_size=4),
    )
)
def test_slopes_come_back_in_order_to_four_digits(tmp_path_factory, slopes):
    run = Run(tmp_path_factory.mktemp("run"))
    record.save_slopes(run.folder, {layer: np.array(a) for layer, a in slopes.items()})
    assert list(run.slopes) == list(slopes)
    for layer, a in slopes.items():
        np.testing.assert_allclose(run.slopes[layer], a, atol=5.1e-5)
    assert (run.folder / "slopes.json").exists() == bool(slopes)


# --- several runs ---
def asked_for(arms, small=()):
    return Asked("table2", "smoke", arms, {}, {}, list(small), None)


def runs_of(folder, values, **told):
    """A run for each {seed: ten_view error}."""
    return [run_of(folder / f"{folder.name}-s{seed}", seed=seed, errors={"ten_view": error}, **told)
            for seed, error in values.items()]  # fmt: skip


def ten_view(run):
    return run.error("ten_view")


def test_pairs_share_a_seed_and_others_are_left_out(tmp_path):
    ours = runs_of(tmp_path / "prelu", {0: 10, 1: 11, 4: 12})
    theirs = runs_of(tmp_path / "relu", {1: 15, 2: 16, 0: 17})
    asked = asked_for({"prelu": ours, "relu": theirs})
    names = [(a.name, b.name) for a, b in asked.pairs("prelu", "relu")]
    assert names == [("prelu-s0", "relu-s0"), ("prelu-s1", "relu-s1")]
    assert differences(asked.pairs("prelu", "relu"), ten_view) == [7.0, 4.0]
    assert differences(asked.pairs("relu", "prelu"), ten_view) == [-4.0, -7.0]


def test_differences_drop_what_was_not_scored_only_where_asked(tmp_path):
    [ours], [theirs] = (runs_of(tmp_path / arm, {0: 10}) for arm in ("a", "b"))
    assert differences([(ours, theirs)], lambda run: run.error("dense"), drop=True) == []
    assert math.isnan(differences([(ours, theirs)], lambda run: run.error("dense"))[0])


def test_noise_is_what_seeds_change_within_arms_pooled_over_them(tmp_path):
    low = runs_of(tmp_path / "a", {0: 10, 1: 12, 2: 14, 3: 12})
    high = runs_of(tmp_path / "b", {0: 50, 1: 54, 2: 58})
    noise = asked_for({}, [low, high]).noise(ten_view)
    assert noise == pytest.approx(math.sqrt((8 + 32) / 5))


def test_noise_ignores_nets_that_did_not_learn_and_values_that_are_not_there(tmp_path):
    good = runs_of(tmp_path / "a", {n: 10 + n for n in range(6)})
    stalled = runs_of(tmp_path / "b", {7: 75}, status="stalled")
    diverged = runs_of(tmp_path / "c", {8: 1}, status="diverged")
    noise = asked_for({}, [good + stalled + diverged]).noise(ten_view)
    assert noise == pytest.approx(math.sqrt(17.5 / 5))
    assert asked_for({}, [good]).noise(lambda run: run.error("dense")) is None


def test_noise_of_too_few_nets_is_not_told(tmp_path):
    arm = runs_of(tmp_path / "a", {n: 10 + n for n in range(6)})
    assert asked_for({}, [arm]).noise(ten_view) is not None
    for few in ([arm[:5]], [arm[:3], arm[3:]], [[run] for run in arm], []):
        assert asked_for({}, few).noise(ten_view) is None


# --- cells ---
@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([12.5], "12.50 (1)"),
        ([10, 12], "11.00 ± 1.41 (2)"),
        ([10, math.nan, 12, None, math.inf], "11.00 ± 1.41 (2)"),
        ([], "-"),
        ([math.nan], "-"),
    ],
)
def test_a_cell_tells_mean_deviation_and_how_many(values, cell):
    assert mean_and_spread(iter(values)) == cell


def test_a_cell_has_as_many_digits_as_asked_for():
    assert mean_and_spread([0.12345, 0.12355], 3) == "0.123 ± 0.000 (2)"
    assert (printed(33.8), printed(0.6871, 3), printed(0.0)) == ("33.80", "0.687", "0.00")
    assert printed(None) == printed(math.nan) == "-"


@some
@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_every_cell_tells_how_many_nets_it_rests_on(values):
    assert mean_and_spread(values).endswith(f"({len(values)})")


def test_the_papers_values_are_there_for_every_table():
    paper = published()
    assert {f"table{n}" for n in (1, 2, 4, 5, 6, 7)} <= set(paper)
    assert paper["table2"]["prelu"] == [32.64, 12.75]
