"""Batches shared by several trainings: what each would make alone, but made by one of them."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.data import memory as memory_of
from delving.data import shared
from delving.data.loader import Cache, TrainingBatches, iterate
from delving.data.memory import claimed, hear
from delving.data.parcel import Packed
from delving.data.shared import Other, SharedBatches, iterate_shared, sharing

STEPS, BATCH, REACH = 40, 3, 10
IMAGES = make_images([(16 + i, 20 + i % 3) for i in range(11)], classes=3)
FORK = multiprocessing.get_context("fork")


def batches(images=IMAGES, **others):
    about = {"batch": BATCH, "crop": 14, "sides": (16, 32), "flip": True, "seed": 0} | others
    return TrainingBatches(Cache(images, 0.0), **about)


@pytest.fixture(scope="module")
def alone():
    return list(iterate(batches(), range(STEPS), workers=0, pin=False))


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The shared memory, which is a folder of the test's own."""
    monkeypatch.setattr(memory_of, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(shared, "LEAST", 0)
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory" / f"delving-{os.getuid()}"


@pytest.fixture
def join(memory):
    """Joins a training that shares its batches until the test ends."""
    with ExitStack() as trainings:

        def enter(dataset=None, **others):
            about = {"data": "images", "reach": REACH} | others
            return trainings.enter_context(sharing(dataset or batches(), range(STEPS), **about))

        yield enter


@pytest.fixture
def reads(tmp_path):
    """Counts the images read, whichever process reads them."""
    log = tmp_path / "reads"
    log.touch()

    def read(name):
        handle = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.write(handle, b".")
        os.close(handle)
        return IMAGES.read(name)

    return replace(IMAGES, read=read), lambda: log.stat().st_size


def assert_same(ours, theirs):
    ours = opened(ours)
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert ours.bad == theirs.bad


def made_in(folder):
    """The steps whose batches lie in the folder."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def folders_in(memory):
    return [path for path in memory.iterdir() if path.is_dir()]


def opened(batch):
    """A batch as it comes out of a loader process."""
    return batch.unpack() if isinstance(batch, Packed) else batch


def test_trainings_side_by_side_see_what_each_would_alone_and_an_image_is_decoded_once(
    alone, join, reads
):
    images, count = reads
    trainings = [join(batches(images)) for _ in range(3)]
    for step, expected in enumerate(alone):
        for training in trainings:
            assert_same(training[step], expected)
    assert count() == STEPS * BATCH


def test_loader_processes_of_two_trainings_divide_the_work(alone, memory, reads):
    images, count = reads
    how = {"data": "images", "workers": 2, "pin": False}
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(iterate_shared(batches(images), range(STEPS), **how)))
            for _ in range(2)
        ]
        for expected in alone:
            for stream in streams:
                assert_same(next(stream), expected)
    # The first training began alone.
    assert STEPS * BATCH <= count() <= (STEPS + 2 * shared.AHEAD) * BATCH
    assert not folders_in(memory)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=12), st.integers(1, 4))
def test_any_order_of_steps_gives_the_same(alone, order, reach):
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patch.setattr(memory_of, "MEMORY", scratch)
        patch.setattr(shared, "PATIENCE", 0.0)
        patch.setattr(shared, "PAUSE", 0.001)
        three = [stack.enter_context(sharing(batches(), range(STEPS), data="images", reach=reach))
                 for _ in range(3)]  # fmt: skip
        at = [0, 0, 0]
        for turn, further in order:
            for step in range(at[turn], min(STEPS, at[turn] + further)):
                assert_same(three[turn][step], alone[step])
                at[turn] = step + 1
            assert len(made_in(three[0].folder)) <= 3 * 2 * reach + 1


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"batch": 4}, {"crop": 15}, {"sides": (16, 31)}, {"flip": False},
    {"share": (0, 2)}, {"images": IMAGES.take(range(10))},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_trainings_that_see_other_batches_share_nothing(join, memory, change):
    ours, theirs = join(), join(batches(**change))
    assert ours.folder != theirs.folder
    join(data="others of these names")
    assert len(folders_in(memory)) == 3


def test_a_training_that_is_alone_leaves_nothing_in_memory(alone, join):
    training = join()
    assert_same(training[0], alone[0])
    assert not made_in(training.folder)


def test_while_another_makes_a_batch_one_makes_later_ones(alone, join):
    ours, theirs = join(), join()
    maker = start(hold_forever, ours.folder, 0)
    found = []
    asking = threading.Thread(target=lambda: found.append(ours[0]))
    asking.start()
    wait_until(lambda: made_in(ours.folder) == list(range(1, REACH)))
    assert not found
    maker.kill()  # the one that waits then makes the batch
    maker.join()
    asking.join()
    assert_same(found[0], alone[0])
    assert_same(theirs[0], alone[0])


def test_a_batch_that_another_never_ends_to_make_is_made_here(alone, join, monkeypatch):
    """As when that process was stopped, by Ctrl-Z or a debugger."""
    monkeypatch.setattr(shared, "PATIENCE", 0.1)
    ours, _ = join(), join()
    maker = start(hold_forever, ours.folder, 0)
    assert_same(ours[0], alone[0])
    maker.kill()
    maker.join()


def test_beside_one_far_ahead_nothing_is_made_that_is_not_kept(alone, join, monkeypatch, reads):
    """Else it would be dropped at the next look and made anew, for as long as the wait lasts."""
    monkeypatch.setattr(shared, "PATIENCE", 5 * shared.PAUSE)
    images, count = reads
    ours, theirs = join(batches(images)), join()
    memory_of.tell(theirs.reader, 5 * REACH, REACH)
    maker = start(hold_forever, ours.folder, 0)
    assert_same(ours[0], alone[0])
    assert made_in(ours.folder) == list(range(1, REACH))
    assert count() == REACH * BATCH  # those, and the one that was asked for
    maker.kill()
    maker.join()


def start(work, *args):
    process = FORK.Process(target=work, args=(*args, held := FORK.Event()))
    process.start()
    assert held.wait(20)
    return process


def hold_forever(folder, step, held):
    with claimed(folder, step) as free:
        assert free
        held.set()
        time.sleep(600)


def wait_until(done, seconds=20):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_is_ahead_waits_until_the_others_come_near(alone, join):
    ahead, behind = join(), join()
    far, found = REACH + 1, []
    asking = threading.Thread(target=lambda: found.append(ahead[far]))
    asking.start()
    wait_until(lambda: hear(ahead.reader) == (far, REACH))
    assert not made_in(ahead.folder)
    memory_of.tell(behind.reader, 2, REACH)
    asking.join()
    assert_same(found[0], alone[far])


def test_a_training_far_behind_is_left_behind_until_it_is_near(alone, join, reads, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 0.05)
    images, count = reads
    ahead, behind = join(batches(images)), join(batches(images))
    far = REACH + 1
    assert_same(ahead[far], alone[far])
    assert [other.left for other in ahead.others.values()] == [True]
    memory_of.tell(behind.reader, far, REACH)
    before = count()
    assert_same(ahead[far + 1], alone[far + 1])
    assert_same(behind[far + 1], alone[far + 1])
    assert count() - before == BATCH


def test_a_slower_training_is_not_waited_for_for_ever(alone, join, monkeypatch):
    """Else a small net would train at the pace of a large one, which always arrives in time."""
    monkeypatch.setattr(shared, "PATIENCE", 10 * shared.PAUSE)
    fast, slow = join(), join()
    pauses = 0

    def crawl(seconds):
        nonlocal pauses
        pauses += 1
        memory_of.tell(slow.reader, pauses // 3, REACH)

    monkeypatch.setattr(shared.time, "sleep", crawl)
    for step, expected in enumerate(alone):
        assert_same(fast[step], expected)
    assert 10 < pauses < 3 * (STEPS - REACH) / 2


def test_patience_with_one_behind_halves_each_time_and_is_new_once_it_is_level():
    other = Other(patience=4 * shared.PAUSE)
    other.see(0, REACH, step=100)
    waits = [0, 0]
    for lot in range(2):
        other.left = False
        while not other.left:
            other.wait()
            waits[lot] += 1
    assert waits == [5, 3]
    other.wait()
    other.see(99, REACH, step=100)
    assert (other.left, other.waited) == (False, shared.PAUSE)
    other.see(100, REACH, step=100)
    assert other.waited == 0


def test_a_batch_tells_the_images_that_could_not_be_decoded(join):
    broken = make_images([(20, 16)] * 6, bad={1, 4})
    once = TrainingBatches(Cache(broken, 0.0), batch=6, crop=14, sides=(16, 16), flip=True, seed=0)
    ours, theirs = join(once), join(once)
    assert opened(ours[0]).bad == opened(theirs[0]).bad == once[0].bad
    assert len(once[0].bad) >= 2


def test_once_the_others_are_gone_what_they_made_is_used_and_then_goes(alone, memory, join, reads):
    images, count = reads
    ours = join(batches(images))
    with sharing(batches(images), range(STEPS), data="images", reach=REACH) as theirs:
        for step in range(5):
            assert_same(theirs[step], alone[step])
    assert made_in(ours.folder) == list(range(5))
    before = count()
    for step in range(5):
        assert_same(ours[step], alone[step])
    assert count() == before
    assert_same(ours[5], alone[5])
    assert not made_in(ours.folder)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_training_is_not_waited_for_and_leaves_nothing(alone, memory, reaped, monkeypatch):
    """Nor if its parent does not reap it, so that its process id lives on."""
    monkeypatch.setattr(shared, "PULSE", 0.0)

    def train(begun):
        how = {"data": "images", "workers": 1, "pin": False}
        for _ in iterate_shared(batches(), range(STEPS), **how):
            begun.set()
            time.sleep(600)

    other = start(train)
    with sharing(batches(), range(STEPS), data="images", reach=REACH) as training:
        assert_same(training[0], alone[0])
        assert made_in(training.folder)
        os.kill(other.pid, signal.SIGKILL)
        if reaped:
            other.join()
        begun = time.monotonic()
        for step, expected in enumerate(alone):
            assert_same(training[step], expected)
        assert time.monotonic() - begun < shared.PATIENCE / 2
    assert not folders_in(memory)
    other.join()


def test_what_killed_trainings_left_is_not_taken_for_ours(alone, join, memory):
    folder = join().folder
    (folder / "0").write_bytes(b"of another time")
    [reader] = folder.glob("reader-*")
    reader.unlink()
    (folder / "reader-killed").write_bytes(bytes(16))
    ours, _ = join(), join()
    assert_same(ours[0], alone[0])
    assert len(list(ours.folder.glob("reader-*"))) == 2


def test_folders_of_killed_trainings_go_when_the_next_one_begins(join, memory):
    folder = memory / "killed"
    join()
    folder.mkdir()
    (folder / "17").write_bytes(b"of another time")
    (folder / "reader-killed").write_bytes(bytes(16))
    join(data="others")
    assert not folder.exists()


def test_trainings_that_come_and_go_never_lose_their_folder(memory):
    def come_and_go(failed, held):
        held.set()
        for _ in range(100):
            with sharing(batches(), range(STEPS), data="images", reach=REACH) as training:
                if not isinstance(training, SharedBatches) or not training.reader.exists():
                    failed.value = True

    failed = FORK.Value("b", False)
    processes = [start(come_and_go, failed) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not failed.value
    assert not folders_in(memory)


def test_a_folder_removed_meanwhile_costs_but_the_sharing(alone, join):
    ours, theirs = join(), join()
    assert_same(ours[0], alone[0])
    shutil.rmtree(ours.folder)
    for training in (ours, theirs):
        assert_same(training[1], alone[1])


def test_another_that_was_stopped_while_it_joined_costs_but_the_sharing(join, memory, monkeypatch):
    monkeypatch.setattr(memory_of, "PATIENCE", 0.05)
    join()
    with memory_of._alone(memory):
        assert not isinstance(join(), SharedBatches)
    assert isinstance(join(), SharedBatches)


def test_where_memory_is_short_each_loads_for_itself(join, monkeypatch):
    monkeypatch.setattr(memory_of, "ROOM", 1e-15)
    assert not isinstance(join(), SharedBatches)


def test_small_batches_are_not_shared(memory, monkeypatch):
    monkeypatch.setattr(shared, "LEAST", 14 * 14 * 3 * BATCH + 1)
    stream = iterate_shared(batches(), range(STEPS), data="images", workers=1, pin=False)
    with closing(stream):
        next(stream)
        assert not memory.exists()


def test_memory_that_fills_up_costs_but_the_sharing_until_there_is_room(alone, join, monkeypatch):
    ours, _ = join(), join()

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr(shared, "save_file", fail)
        for step in (0, 1):
            assert_same(ours[step], alone[step])
    assert_same(ours[2], alone[2])
    assert not made_in(ours.folder)
    ours.retry = 0.0
    assert_same(ours[3], alone[3])
    assert made_in(ours.folder) == [3]


@pytest.mark.parametrize("spoil", [
    lambda place: place.mkdir(mode=0o777) or place.chmod(0o777),
    lambda place: place.symlink_to(place.parent),
    lambda place: place.touch(),
], ids=["open to all", "a link", "a file"])  # fmt: skip
def test_nothing_is_shared_where_others_could_put_something(memory, join, spoil):
    spoil(memory)
    assert not isinstance(join(), SharedBatches)


def test_a_system_without_such_memory_shares_nothing(join, monkeypatch, tmp_path):
    monkeypatch.setattr(memory_of, "MEMORY", tmp_path / "none")
    assert not isinstance(join(), SharedBatches)


# --- trainings that are killed at any time ---
def count_wrong(seed, alone, folder):
    """Runs some trainings and kills one or none: how many saw a wrong batch or, unless killed, not
    all batches."""
    rng, paths = random.Random(seed), []
    for number in range(rng.randint(2, 4)):
        paths.append(folder / f"{seed}-{number}")
        paths[-1].touch()
    about = [(path, rng.randint(1, 2), rng.choice([0.0, 0.01])) for path in paths]
    trainings = [FORK.Process(target=note_batches, args=one) for one in about]
    for training in trainings:
        training.start()
    victim = rng.choice([None, *range(len(trainings))])
    if victim is not None:
        time.sleep(rng.uniform(0, 0.5))
        trainings[victim].kill()
    for training in trainings:
        training.join(60)
        training.kill()  # one that hangs is a wrong one
    expected = [f"{hash_of(batch)}" for batch in alone]
    wrong = 0
    for number, path in enumerate(paths):
        seen = path.read_text().splitlines()
        all_of_them = number == victim or len(seen) == STEPS
        wrong += not all_of_them or seen != expected[: len(seen)]
    return wrong


def note_batches(path, workers, pause):
    how = {"data": "images", "workers": workers, "pin": False}
    with path.open("w", buffering=1) as file:
        for batch in iterate_shared(batches(), range(STEPS), **how):
            file.write(f"{hash_of(batch)}\n")
            time.sleep(pause)


def hash_of(batch):
    return zlib.crc32(b"".join(tensor.numpy().tobytes() for tensor in batch[:3]))


@pytest.mark.parametrize(
    "tries", [3, pytest.param(60, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_whenever_one_is_killed_the_others_see_their_batches(tries, alone, memory, tmp_path, tally):
    failures = sum(bool(count_wrong(seed, alone, tmp_path)) for seed in range(tries))
    failures += bool(folders_in(memory)) and bool(join_and_leave(memory))
    what = "trainings that share their batches, kill one at any time: no wrong batch, nothing left"
    tally(what, tries, failures)
    assert failures == 0


def join_and_leave(memory):
    """The folders left once another training has come and gone after the last one was killed."""
    with sharing(batches(), range(STEPS), data="others", reach=REACH):
        pass
    return folders_in(memory)
