"""What `delving bench` compares computes the same, and its figures are worked out correctly. No
test asks how fast anything is."""

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from calling import Crash, call
from hypothesis import given
from hypothesis import strategies as st

from delving.artefact import published
from delving.bench import loading, racing, rounds, starting, table, testing, training
from delving.bench.plain import make_plain
from delving.config import compose
from delving.evaluate import score_windows

WORDS = ["scale=smoke", "train.dropout=0", "device=cpu", "precision=fp32"]


@pytest.fixture
def brief(monkeypatch):
    """Rounds that take no time."""
    monkeypatch.setattr(rounds, "SECONDS", 0.0)
    monkeypatch.setattr(loading, "SECONDS", 0.01)
    monkeypatch.setattr(racing, "STEPS", 1)


@pytest.mark.parametrize("act", ["relu", "lrelu", "prelu", "prelu_shared"])
@pytest.mark.parametrize("model", ["small14", "a"])
def test_the_plain_net_computes_what_ours_does(model, act):
    """The same scores and the same gradients, in float64, so that only speed is compared."""
    bench = training.build([*WORDS, f"model={model}", f"act={act}"])
    ours = bench.net.double()
    plain = make_plain(training.copy.deepcopy(ours)).double()
    x = bench.prepare(bench.batch).double()
    out, wanted = ours(x), plain(x.contiguous())
    torch.testing.assert_close(out, wanted)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).double()
    out.backward(grad)
    wanted.backward(grad)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.view_as(mine), rtol=1e-9, atol=1e-12)


def test_a_training_that_ends_early_is_no_rate():
    bench = training.build(WORDS)
    bench.ours(2)
    bench.batch.color.fill_(torch.inf)
    with pytest.raises(RuntimeError, match="its loss is not finite"):
        bench.ours(2)


def test_the_start_is_that_of_scale_smoke_whatever_scale_is_asked_for(monkeypatch, tmp_path):
    asked = []

    def child(*words):
        asked.extend(words)
        return {"args": [sys.executable, "-c", "pass", *words]}

    monkeypatch.setattr(starting, "child", child)
    with pytest.raises(RuntimeError, match=r"scale=smoke .* ended without a step"):
        starting._first_step(tmp_path, ["scale=cpu"])
    assert [word for word in asked if word.startswith("scale=")] == ["scale=cpu", "scale=smoke"]


def test_dense_testing_scores_as_the_loop_over_windows_does():
    bench = training.build(WORDS)
    bench.net.eval()
    x = bench.input(torch.randint(0, 256, (2, 40, 44, 3), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(score_windows(bench.net, x), testing.loop_over_windows(bench, x))


@pytest.mark.usefixtures("brief")
def test_all_of_imagenets_validation_images_are_reckoned_from_a_few(monkeypatch):
    """At three scales, with flips; the time is proportional to the number of images."""
    seen = []

    def score(net, x):
        seen.append(tuple(x.shape))

    monkeypatch.setattr(testing, "score_windows", score)
    monkeypatch.setattr(testing, "seconds_each", lambda work, device: work() or 0.5)
    row = testing._all_images(training.build(WORDS), 1, "cpu")
    assert seen[:3] == [(2, 3, 32, 42), (2, 3, 48, 64), (2, 3, 60, 80)]
    assert (row.ours, row.unit) == (3 * 0.5 * 50_000, "s")
    assert row.row.endswith("50,000 images and their flips at 32, 48, 60, without decoding")


def test_windows_are_counted_as_dense_testing_has_them():
    bench = training.build(WORDS)
    maps = bench.net.features(torch.zeros(1, 3, 60, 60)).shape[2]
    x = torch.zeros(1, 3, 60, 60)
    assert testing.count_windows(bench, x) == (maps - bench.net.map_size + 1) ** 2 > 1


@given(
    pairs=st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=7),
    unit=st.sampled_from(["images/s", "ms"]),
)
def test_a_ratio_says_how_many_times_better_ours_is(pairs, unit):
    mine, theirs = map(list, zip(*pairs, strict=True))
    row = rounds.compare("x", mine, theirs, unit=unit, device="cpu", limit=1000.0)
    each = sorted((b / a if unit == "ms" else a / b) for a, b in pairs)
    assert (row.low, row.high) == (each[0], each[-1])
    assert row.low <= row.ratio <= row.high
    assert row.fraction == (1000 / row.ours if unit == "ms" else row.ours / 1000)


def test_two_ways_take_turns_and_the_first_round_does_not_count():
    calls = []

    def way(name):
        calls.append(name)
        return len(calls)

    found = rounds.in_turns({n: lambda n=n: way(n) for n in "ab"}, rounds=3)
    assert calls == list("abababab")
    assert found == {"a": [3, 5, 7], "b": [4, 6, 8]}


@pytest.mark.usefixtures("brief")
def test_every_row_has_the_keys_of_the_contract():
    code, out, err = call("bench", "eval", "scale=smoke", "--rounds", "1", "--json")
    assert (code, err) == (0, "")
    for row in json.loads(out):
        assert list(row) == ["row", "ours", "baseline", "ratio", "low", "high", "limit",
                             "fraction", "unit", "device"]  # fmt: skip
        assert row["ours"] > 0
        assert row["unit"] == "images/s"


def test_an_unknown_row_is_refused_with_the_choices():
    code, out, err = call("bench", "rectifer")
    assert (code, out) == (2, "")
    assert "did you mean rectifier" in err


def test_of_all_rows_one_that_fails_costs_no_other(monkeypatch):
    def fail(words, rounds):
        raise RuntimeError("nothing to measure with")

    row = rounds.compare("x", [1.0], [2.0], unit="ms", device="cpu")
    seen = []
    ways = {"a": fail, "loader": lambda words, rounds: seen.append(words) or [row], "b": fail}
    monkeypatch.setattr(table, "WHAT", ways)
    code, out, err = call("bench", "all", "data.root=x", "--json")
    assert code == 1
    assert [r["ratio"] for r in json.loads(out)] == [2.0]
    assert "bench a: nothing to measure with" in err
    assert len(err.splitlines()) == 2
    assert seen == [["data.root=x"]]


def test_a_signal_ends_it_and_what_was_measured_is_told_and_written(monkeypatch, tmp_path):
    def interrupted(words, rounds):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    def never(words, rounds):
        raise AssertionError

    row = rounds.compare("x", [1.0], [2.0], unit="ms", device="cpu")
    ways = {"a": lambda words, rounds: [row], "b": interrupted, "c": never}
    monkeypatch.setattr(table, "WHAT", ways)
    code, out, err = call("bench", "all", "--json", "--to", tmp_path / "rows.json")
    assert (code, [r["row"] for r in json.loads(out)]) == (143, ["x"])
    assert err == "delving: SIGTERM: stopped here; the same command begins again\n"
    assert json.loads((tmp_path / "rows.json").read_text()) == json.loads(out)


def test_words_that_name_a_net_are_measured_alone():
    assert table._nets(["model=c", "device=cpu"], "abc") == [["model=c", "device=cpu"]]
    nets = table._nets(["device=cpu"], "abc")
    assert ["device=cpu", "scale=cpu"] in nets
    assert len(nets) == 3


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("kind", ["zip", "folder", "generated"])
def test_the_loader_is_measured_on_the_files_that_are_given(kind, tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setattr(loading, "COUNT", 12)
    words = ["data.workers=0", "device=cpu", "model=small14", "model.width=0.0625"]
    files = list(loading._generated())[:12]
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as some:
            for number, data in enumerate(files):
                some.writestr(f"val/n{number}/{number}.JPEG", data)
        words.append(f"data.root={tmp_path / 'some.zip'}")
    if kind == "folder":
        (tmp_path / "val").mkdir()
        for number, data in enumerate(files):
            (tmp_path / "val" / f"{number}.jpg").write_bytes(data)
        words.append(f"data.root={tmp_path}")
    rate, arms, waiting = loading.bench_loader(words, rounds=1)
    assert (arms.ours > 0, arms.baseline > 0) == (True, True)
    assert ("generated" in rate.row) == (kind == "generated")
    assert rate.ours > 0
    assert rate.baseline > 0
    assert 0 < waiting.ours < 100
    assert waiting.unit == "%"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_loader_has_the_processes_of_a_training_on_this_device(monkeypatch, device):
    """Which Python's way to start them decides for a CPU alone."""
    asked = []

    def count_workers(wanted, *, gpu=False):
        asked.append(gpu)
        raise Crash

    there = SimpleNamespace(config=compose(["scale=paper"]), device=torch.device(device))
    monkeypatch.setattr(loading, "pick_device", lambda name: there.device)
    monkeypatch.setattr(loading, "build", lambda words: there)
    monkeypatch.setattr(loading, "count_workers", count_workers)
    for measure in (lambda words: loading.bench_loader(words, 1),
                    lambda words: loading._waiting(words, None, 1)):  # fmt: skip
        with pytest.raises(Crash):
            measure([])
    assert asked == [device == "cuda"] * 2


def test_too_few_files_are_refused(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 JPEG files, at least 10 needed"):
        loading.bench_loader([f"data.root={tmp_path}"], rounds=1)


@pytest.mark.parametrize(
    ("root", "said"),
    [("gone.zip", "there is no such folder or zip"), ("gone", "there is no such folder or zip"),
     ("text.zip", "not a zip, or a broken one"), ("~no.such/x", "data.root=~no.such/x: ")],
)  # fmt: skip
def test_files_that_are_not_there_or_of_another_kind_are_refused(root, said, tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    code, _, err = call("bench", "loader", f"data.root={root if '~' in root else tmp_path / root}")
    assert code == 2
    assert said in err
    assert root in err


@pytest.mark.long
@pytest.mark.usefixtures("brief")
def test_nets_that_race_all_train():
    side, alone = racing.bench_side_by_side(WORDS, 2, rounds=1)
    assert side.ours > 0
    assert alone.baseline == side.baseline
    [ranks] = racing.bench_ranks(WORDS, [2], rounds=1)
    assert ranks.ours > 0


def test_a_racer_that_died_is_told_and_not_taken_for_a_reader_that_left(monkeypatch):
    """A broken pipe ends `delving ... | head` well, but not a race."""
    monkeypatch.setattr("sys.executable", "false")
    with racing.Racer([], plain=True, threads=1) as one:
        one.process.wait()
        with pytest.raises(RuntimeError, match="exit code 1"):
            one.start()


def test_where_the_paper_tells_a_speedup_the_row_names_it(monkeypatch):
    racer = SimpleNamespace(let_go=lambda: None)
    monkeypatch.setattr(racing, "Racer", lambda *_, **__: nullcontext(racer))
    monkeypatch.setattr(racing, "in_turns", lambda *_: {"ranks": [2.0], "alone": [1.0]})
    two, four = racing.bench_ranks(WORDS, [2, 4], rounds=1)
    paper = published()["text"]["speedup"][4]
    assert f"{paper}x" in four.row
    assert "paper" not in two.row
