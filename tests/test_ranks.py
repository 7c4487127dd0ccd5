"""Several processes train a run as one does: the same images and sums, each counted once."""

import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
from calling import call
from smoke import WORDS, differences, outcome, silent, train

from delving import device, exits, record
from delving.checkpoint import load_checkpoint
from delving.config import amend, compose
from delving.ranks import (
    ALONE,
    LostRankError,
    OtherRankError,
    Ranks,
    _meet,
    _naming_losses,
    _read_ranks,
    agree,
    joined,
)
from delving.score import eval_run
from delving.signals import Interrupted


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_ranks(size, act):
    """Runs act(rank) in `size` forked processes that find each other; returns their exit codes:
    what act returned, 0 for None, 1 for an error."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                    LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
                code = act(rank) or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def trained(root, size, *words):
    """Trains a run by `size` ranks; returns its folder."""
    codes = in_ranks(size, lambda rank: train(root, silent_rank(rank), *words) and 0)
    assert codes == [0] * size
    [folder] = record.list_runs(str(root))
    return folder


def silent_rank(rank):
    """A watcher that only the first rank may call."""

    def watch(event):
        assert rank == 0

    return watch


# --- speaking with each other ---
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_sum_gather_and_tell(size):
    def act(rank):
        with joined() as ranks:
            assert (ranks.rank, ranks.size, ranks.first) == (rank, size, rank == 0)
            total = ranks.sum(torch.tensor([1.0, rank]))
            assert total.tolist() == [size, sum(range(size))]
            assert ranks.largest(10 - rank) == 10
            values = [{"name": "é\n", "of": [n, None, 1.5]} for n in range(size)]
            assert ranks.gather(values[rank]) == values
            assert ranks.tell({"rank": rank} if rank == 0 else None) == {"rank": 0}
            ours = [torch.full((2, 3), float(rank)), torch.tensor(rank)]
            ranks.spread(ours)
            assert [x.sum().item() for x in ours] == [0, 0]
            with joined() as again:
                assert again == ranks

    assert in_ranks(size, act) == [0] * size


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_stops_all_and_is_told_by_the_one(failing):
    def act(rank):
        with joined() as ranks:
            try:
                with ranks.same_fate():
                    if rank == failing:
                        raise ValueError("no such image")
            except ValueError as error:
                return 2 if rank == failing and str(error) == "no such image" else 3
            except OtherRankError as error:
                return 4 if str(error) == f"rank {failing}: ValueError: no such image" else 5

    wanted = [4, 4]
    wanted[failing] = 2
    assert in_ranks(2, act) == wanted


def test_what_rank_0_finds_all_know_and_its_error_is_its_own():
    def act(rank):
        with joined() as ranks:
            assert agree(ranks, lambda: [rank, "found"]) == [0, "found"]
            try:
                agree(ranks, lambda: int("x"))
            except ValueError:
                return 2
            except OtherRankError:
                return 3

    assert in_ranks(2, act) == [2, 3]


def test_ranks_that_are_bound_to_cores_of_their_own_share_none():
    """As SLURM binds them; torchrun lets all ranks of a machine use all of its cores."""

    def act(rank):
        with joined() as ranks:
            if ranks.sharing() != 2:
                return 2
            ranks.wait()
            os.sched_getaffinity = lambda pid: {rank}  # in this process alone, which soon ends
            return 0 if ranks.sharing() == 1 else 3

    assert in_ranks(2, act) == [0, 0]


def test_the_signal_that_any_rank_has_heard_stops_all_and_rank_0_tells_of_it(tmp_path):
    """Of several signals one counts: here rank 1's, after which a cluster starts the run again."""
    heard = [[signal.SIGTERM], [signal.SIGUSR1]]

    def act(rank):
        with joined() as ranks:
            ranks.stop_if_told([])  # nobody has heard anything
            with pytest.raises(Interrupted, match=f"^SIGUSR1: saved in {tmp_path};") as cut:
                ranks.stop_if_told(heard[rank], tmp_path)
            assert cut.value.signal == signal.SIGUSR1
            assert cut.value.told_elsewhere == (rank != 0)

    assert in_ranks(2, act) == [0, 0]


def together(alone):
    """All ranks meet; then each does something by itself, and waits for the others again."""
    with joined() as ranks:
        ranks.wait()
        alone()
        ranks.wait()


def test_a_rank_that_is_gone_is_told():
    def act(rank):
        with pytest.raises(LostRankError, match=r"^rank 0 lost another rank, .*checkpoint"):
            together(lambda: rank == 1 and os._exit(5))

    assert in_ranks(2, act) == [0, 5]


def test_of_what_torch_says_of_a_loss_the_first_line_is_told():
    """The other lines tell where in torch's own code it was noticed."""
    said = dist.DistNetworkError("the store is gone\nframe #0: c10d::TCPStore::doWait")
    with pytest.raises(LostRankError, match=r"rank 1 lost .* again: the store is gone$"), \
            _naming_losses(Ranks(1, 2)):  # fmt: skip
        raise said


def test_a_ranks_own_error_is_not_taken_for_the_loss_of_another():
    def fail():
        raise RuntimeError("out of memory")

    def act(rank):
        with pytest.raises(RuntimeError, match=r"^out of memory$"):
            together(fail)

    assert in_ranks(2, act) == [0, 0]


def test_ranks_part_at_the_end():
    def act(rank):
        with joined() as ranks:
            ranks.wait()
            assert dist.is_initialized()
        assert not dist.is_initialized()

    assert in_ranks(2, act) == [0, 0]


# --- meeting ---
def test_a_rank_that_comes_early_waits_for_the_others_not_for_those_of_an_earlier_start(
    monkeypatch,
):
    """torchrun keeps its store when it restarts ranks: what the dead ones wrote is still there."""
    monkeypatch.setattr("delving.ranks.MEETING", 10.0)
    store, found = dist.HashStore(), []
    store.set("delving/meeting", "earlier")
    store.set("delving/earlier/all", "the dead")
    early = threading.Thread(target=lambda: found.append(_meet(store, Ranks(1, 2))))
    early.start()
    store.wait(["delving/earlier/1"])  # it has joined the earlier meeting
    found.append(_meet(store, Ranks(0, 2)))
    early.join()
    assert found[0] == found[1] != "earlier"


def test_ranks_that_do_not_come_are_waited_for_so_long_and_told(monkeypatch):
    monkeypatch.setattr("delving.ranks.MEETING", 0.05)
    with pytest.raises(LostRankError, match=r"not all of 2 ranks came within 0\.05 s"):
        _meet(dist.HashStore(), Ranks(0, 2))


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ({}, Ranks(3, 4, 3, 4)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 4, 1, 2)),
    ],
)
def test_ranks_are_all_of_one_machine_unless_they_are_told_their_own(monkeypatch, local, wanted):
    there = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"} | local
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    assert _read_ranks() == wanted


def test_alone_nothing_is_sent():
    x = torch.ones(2)
    assert ALONE.sum(x) is x
    assert (ALONE.gather(5), ALONE.tell(5), ALONE.largest(5)) == ([5], 5, 5)
    with pytest.raises(KeyError), ALONE.same_fate():
        raise KeyError


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "no such rank"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK=x"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK=-1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1",
          "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, "no such rank"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1",
          "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "no such rank"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"},
         "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},
         "MASTER_PORT=99999: choose from 0 to 65535"),
    ],
)  # fmt: skip
def test_variables_that_make_no_sense_are_refused(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said), joined():
        pass


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": port}.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ValueError, match=f"MASTER_PORT={port}: .*EADDRINUSE"), joined():
            pass


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"},
                                       {"WORLD_SIZE": "2"}])  # fmt: skip
def test_one_process_is_alone_whatever_else_is_set(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with joined() as ranks:
        assert ranks is ALONE


# --- training ---
EVERY_STEP = ["train.log_every=1", "train.lr=0.01", "eval.every=100", "eval.protocols=center",
              "train.checkpoint_minutes=100"]  # fmt: skip
some_and_fifty = pytest.mark.parametrize("steps", [9, pytest.param(50, marks=pytest.mark.long)])


def losses_alone_and_of_two(root, steps, *words):
    """The first losses at the paper's rate, by one process and by two ranks."""
    words, found = [*EVERY_STEP, f"train.epochs={-(-steps // 3)}", *words], []
    for folder in (train(root, silent, *words), trained(root / "two", 2, *words)):
        found.append(np.array([e["loss"] for e in record.read_events(folder, "step")][:steps]))
        assert len(found[-1]) == steps
    return found


@some_and_fifty
def test_in_float64_ranks_change_no_loss_at_the_papers_rate(root, tally, steps):
    alone, found = losses_alone_and_of_two(root, steps, "precision=fp64")
    spread = np.abs(found - alone).max()
    tally(f"float64, 2 ranks against 1: losses of {steps} steps", 1, int(spread > 1e-5),
          f"largest difference {spread:.1e}")  # fmt: skip
    assert spread < 1e-5
    assert np.ptp(alone) > 1e-3  # the losses that agree do change


@pytest.mark.long
def test_in_float32_the_first_loss_is_the_same_and_the_spread_is_told(root, tally):
    """The short form of this is the test of several ranks' record, below."""
    alone, found = losses_alone_and_of_two(root, 50)
    difference = np.abs(found - alone)
    told = f"difference {difference[0]:.1e}, largest over 50 steps {difference.max():.1e}"
    tally("float32, 2 ranks against 1: first loss", 1, int(difference[0] > 1e-5), told)
    assert difference[0] < 1e-5
    assert np.isfinite(found).all()


def compare_logs(ours, theirs):
    """Asserts the same events, with losses and gradients equal but for the rounding of sums."""
    assert [e["event"] for e in ours] == [e["event"] for e in theirs]
    for a, b in zip(ours, theirs, strict=True):
        if a["event"] == "step":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
            assert (a["err"], a["lr"], a["step"]) == (b["err"], b["lr"], b["step"])


@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 4))])
def test_the_record_of_several_ranks_is_that_of_one_but_for_rounding(whole, root, size):
    """Uneven shares in micro-batches, dropout and augmentation: all are as in one process."""
    folder = trained(root, size, "train.micro_batch=5")
    ours, theirs = outcome(folder), outcome(whole)
    assert ours["files"] == theirs["files"]
    compare_logs(ours["log"], theirs["log"])
    result = record.read_result(folder)
    assert result["device"].startswith(f"{size} x cpu")
    assert result["images_seen"] == record.read_result(whole)["images_seen"]
    assert record.read_json(folder / "env.json")["ranks"] == size


@pytest.mark.parametrize("size", [3, pytest.param(2, marks=pytest.mark.long)])
def test_scoring_by_several_ranks_is_scoring_by_one_to_the_bit(whole, tmp_path, size):
    root = tmp_path / "out"
    shutil.copytree(whole.parents[2], root)
    [folder] = record.list_runs(str(root))
    shutil.rmtree(folder / "eval")
    words = ["protocol=center,ten_view,dense", "eval.batch=40", f"output_root={root}"]
    config = amend(folder / "config.yaml", words)
    assert in_ranks(size, lambda rank: eval_run(folder, config, silent_rank(rank)) and 0) == (
        [0] * size
    )
    many = {p: record.load_scores(folder, p) for p in ("center", "ten_view", "dense@60", "dense")}
    shutil.rmtree(folder / "eval")
    eval_run(folder, config, lambda event: None)
    for protocol, (probabilities, labels, names) in many.items():
        one = record.load_scores(folder, protocol)
        assert np.array_equal(probabilities, one[0])
        assert np.array_equal(labels, one[1])
        assert names == one[2]


def test_more_ranks_than_images_of_a_batch_are_refused(root):
    def act(rank):
        try:
            train(root, silent_rank(rank), "train.batch=2", "train.epochs=0.1")
        except (ValueError, OtherRankError) as error:
            return 2 if "batch" in str(error) else 3

    assert in_ranks(3, act) == [2, 2, 2]
    assert not list(root.glob("smoke/runs/*"))


def test_undecodable_images_are_named_once_whoever_meets_them(whole, root):
    [data] = (root / "data").iterdir()
    broken = sorted((data / "train").rglob("*.jpg"))[5]
    broken.write_bytes(b"no image")
    alone = train(root)
    names = [e["name"] for e in record.read_events(alone, "bad_image")]
    assert names == [broken.relative_to(data).as_posix()]
    shutil.rmtree(root / "smoke")
    folder = trained(root, 2)
    assert [e["name"] for e in record.read_events(folder, "bad_image")] == names


def test_ranks_that_see_other_images_are_refused(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "data"
    [data] = (root / "data").iterdir()
    shutil.copytree(data, other)
    for split in ("train", "val"):
        for path in sorted((other / split).rglob("*.jpg"))[:1]:
            path.rename(path.with_name("renamed.jpg"))

    def act(rank):
        where = [data, other][rank]
        try:
            train(root, silent_rank(rank), f"data.root={where}")
        except ValueError as error:
            return 2 if "rank 1 sees other images" in str(error) else 3
        except OtherRankError:
            return 4

    assert in_ranks(2, act) == [2, 4]


# --- the command, as torchrun starts it ---
def called(tmp_path, *words, command=("train", *WORDS)):
    """Runs a command in two ranks: their exit codes, and all that they printed."""

    def act(rank):
        exits.end = sys.exit  # this process still has to write what was said
        code, out, err = call(*command, *words)
        (tmp_path / f"said{rank}").write_text(out + err)
        return code

    codes = in_ranks(2, act)
    return codes, "".join((tmp_path / f"said{rank}").read_text() for rank in range(2))


def test_two_processes_train_a_run_and_one_speaks(whole, root):
    codes, said = called(root, f"output_root={root}")
    assert codes == [0, 0]
    assert said.count("generated images (scale smoke)") == 1
    assert said.count("deviations from the paper's recipe, see") == 1
    [folder] = record.list_runs(str(root))
    assert record.read_result(folder)["device"].startswith("2 x cpu")
    assert [e["event"] for e in outcome(folder)["log"]] == [
        e["event"] for e in outcome(whole)["log"]
    ]


def test_a_slip_is_told_once(tmp_path):
    codes, said = called(tmp_path, "train.lrr=1")
    assert 0 not in codes
    assert said.count("delving: there is no 'train.lrr'") == 1


def test_a_run_that_is_not_there_is_told_once(tmp_path):
    codes, said = called(tmp_path, f"output_root={tmp_path}", command=("eval", "nothere"))
    assert 0 not in codes
    assert said.count("delving: there is no run 'nothere'") == 1


def test_a_batch_that_is_too_small_for_the_ranks_is_told_once(root):
    codes, said = called(root, f"output_root={root}", "train.batch=1")
    assert 0 not in codes
    assert said.count("delving: a batch of 1 for 2 ranks") == 1


def test_ranks_that_would_compute_in_several_precisions_are_refused(root, monkeypatch):
    """As on machines of several kinds, on each of which precision=auto picks the fastest."""
    monkeypatch.setattr(device, "pick_precision", lambda *_: ("bf16", "fp32")[int(
        os.environ["RANK"])])  # fmt: skip
    codes, said = called(root, f"output_root={root}", "precision=auto")
    assert 0 not in codes
    assert said.count("precision=auto: bf16 on rank 0, fp32 on rank 1; give one of these") == 1


def test_a_rank_that_fails_alone_ends_at_once_with_its_own_code():
    """As the program's own ending does: torch's would wait for the others, or abort."""

    def act(rank):
        try:
            with joined() as ranks:
                if rank == 1:
                    raise ValueError
                ranks.wait()
        except Exception:
            exits.end(3 + rank)

    assert in_ranks(2, act) == [3, 4]


# --- going on ---
def interrupted(root, size, step, listener):
    """Trains by `size` ranks, one of which is told to stop; exit codes, 7 for those that did."""

    def act(rank):
        def tick(event):
            if rank == 0 and event["event"] == "tick" and event["step"] == step:
                os.kill(pids[listener], signal.SIGTERM)

        try:
            with joined() as ranks:
                pids = ranks.gather(os.getpid())
                train(root, tick)
        except Interrupted as cut:
            return 7 if cut.signal == signal.SIGTERM else 8

    return in_ranks(size, act)


@pytest.mark.parametrize(
    ("size", "listener"),
    [(3, 2), *(pytest.param(*each, marks=pytest.mark.long) for each in ((2, 1), (3, 0)))],
)
def test_ranks_of_which_one_is_told_to_stop_all_stop_and_go_on_bit_for_bit(
    root, tmp_path_factory, size, listener
):
    """Three ranks' sums would differ in some bit if gradients were summed in another order."""
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(root / "data", other / "data")
    unbroken = trained(other, size)
    assert interrupted(root, size, 2, listener) == [7] * size
    [folder] = record.list_runs(str(root))
    step = load_checkpoint(folder)[1]["progress"]["step"]
    assert step in (2, 3)  # the signal may come a step later to another process
    assert differences(trained(root, size), unbroken) == []


@pytest.mark.parametrize("tries", [2, pytest.param(6, marks=pytest.mark.long)])
def test_ranks_killed_at_any_moment_go_on_bit_for_bit(root, tmp_path_factory, tally, tries):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(root / "data", other / "data")
    unbroken, rng, failures = trained(other, 2), random.Random(tries), 0
    for number in range(tries):
        victim, delay = number % 2, rng.uniform(0.2, 1.2)

        def act(rank, victim=victim, delay=delay):
            with joined():  # before all have met they would wait for the one killed
                if rank == victim:
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.setitimer(signal.ITIMER_REAL, delay)
                train(root, silent_rank(rank))

        started = time.monotonic()
        codes = in_ranks(2, act)
        finished = any((folder / "result.json").exists() for folder in record.list_runs(str(root)))
        if codes[victim] == -signal.SIGALRM and not finished:  # else the other may have ended well
            assert codes[1 - victim] == 1  # the other one noticed
            assert time.monotonic() - started < 60
        failures += bool(differences(trained(root, 2), unbroken))
        shutil.rmtree(root / "smoke")
    tally("one of 2 ranks killed, then the same command: bit for bit", tries, failures)
    assert failures == 0


def test_a_run_may_go_on_with_another_number_of_ranks(whole, root):
    assert interrupted(root, 2, 3, 0) == [7, 7]
    folder = train(root)
    compare_logs(outcome(folder)["log"], outcome(whole)["log"])


def test_a_second_set_of_ranks_on_the_same_run_is_refused(root):
    def act(rank):
        def watch(event):
            if event["event"] == "tick" and event["step"] == 2:
                codes = in_ranks(2, second)
                (root / "codes").write_text(json.dumps(codes))

        train(root, watch)

    def second(rank):
        try:
            train(root, silent_rank(rank))
        except ValueError as error:
            return 2 if "one process at a time" in str(error) else 3
        except OtherRankError as error:
            return 4 if "one process at a time" in str(error) else 5

    codes = in_ranks(1, act)
    assert codes == [0]
    assert json.loads((root / "codes").read_text()) == [2, 4]


def test_words_of_a_configuration_travel_whole():
    """Rank 0 composes the configuration; the others read it as text."""
    from delving.config import from_yaml, to_yaml

    config = compose([*WORDS, "data.root=/a b/ü,=~", "train.switch=0.3,0.7"])
    assert from_yaml(json.loads(json.dumps(to_yaml(config))), "told") == config
