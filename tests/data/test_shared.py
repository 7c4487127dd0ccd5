"""Batches that several trainings see: what each would make by itself, each made by one of them."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.data import shared
from delving.data.loader import Cache, TrainingBatches, iterate
from delving.data.parcel import Packed
from delving.data.shared import SharedBatches, batches_in, iterate_shared, ranges_in

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
    """Where the shared memory is a folder of this test's own."""
    monkeypatch.setattr(shared, "MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory" / f"delving-{os.getuid()}"


@pytest.fixture
def join(memory):
    """Makes a training's batches, as long as the test lasts."""
    with ExitStack() as trainings:

        def enter(dataset=None, **others):
            about = {"data": "images", "reach": REACH} | others
            return trainings.enter_context(
                shared._sharing(dataset or batches(), range(STEPS), **about)
            )

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
    # The first of them has begun alone.
    assert STEPS * BATCH <= count() <= (STEPS + 2 * shared.AHEAD) * BATCH
    assert not list(memory.iterdir())


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=12), st.integers(1, 4))
def test_any_order_of_steps_gives_the_same(alone, order, reach):
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patch.setattr(shared, "MEMORY", scratch)
        patch.setattr(shared, "PATIENCE", 0.0)
        about = (batches(), range(STEPS), "images")
        three = [stack.enter_context(shared._sharing(*about, reach=reach)) for _ in range(3)]
        at = [0, 0, 0]
        for turn, further in order:
            for step in range(at[turn], min(STEPS, at[turn] + further)):
                assert_same(three[turn][step], alone[step])
                at[turn] = step + 1
            [folder] = (scratch / f"delving-{os.getuid()}").iterdir()
            assert len(batches_in(folder)) <= 3 * 2 * reach


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"batch": 4}, {"crop": 15}, {"sides": (16, 31)}, {"flip": False},
    {"share": (0, 2)}, {"images": IMAGES.take(range(10))},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_trainings_that_see_other_batches_share_nothing(join, memory, change):
    ours, theirs = join(), join(batches(**change))
    assert ours.folder != theirs.folder
    join(data="others of these names")
    assert len(list(memory.iterdir())) == 3


def test_a_training_that_is_alone_leaves_nothing_in_memory(alone, join):
    training = join()
    assert_same(training[0], alone[0])
    assert not batches_in(training.folder)


def test_while_another_makes_a_batch_one_makes_the_next(alone, join):
    ours, _ = join(), join()
    maker = FORK.Process(target=hold_forever, args=(ours, 0))
    maker.start()
    wait_until(lambda: not_free(ours, 0))
    ours._make_one(0)
    ours._make_one(0)
    assert sorted(int(path.name) for path in batches_in(ours.folder)) == [1, 2]
    maker.kill()  # whose batch is then made by who is next
    maker.join()
    assert_same(ours[0], alone[0])


def hold_forever(training, step):
    with training._claim(step, wait=True):
        time.sleep(600)


def not_free(training, step):
    def ask(answer):
        with training._claim(step, wait=False) as free:
            answer.value = free

    answer = FORK.Value("b", True)
    asking = FORK.Process(target=ask, args=(answer,))  # a process's own lock does not stop it
    asking.start()
    asking.join()
    return not answer.value


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
    wait_until(lambda: ranges_in(ahead.folder)[ahead.reader] == range(1, far + REACH))
    assert not batches_in(ahead.folder)
    behind._tell(2)
    asking.join()
    assert_same(found[0], alone[far])


def test_a_training_far_behind_is_left_behind_until_it_is_near(alone, join, reads, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 0.05)
    images, count = reads
    ahead, behind = join(batches(images)), join(batches(images))
    far = REACH + 1
    assert_same(ahead[far], alone[far])
    assert ahead.left == {behind.reader.name}
    behind._tell(far)
    before = count()
    assert_same(ahead[far + 1], alone[far + 1])
    assert_same(behind[far + 1], alone[far + 1])
    assert count() - before == BATCH
    assert not ahead.left


def test_a_batch_tells_the_images_that_could_not_be_decoded(join):
    broken = make_images([(20, 16)] * 6, bad={1, 4})
    once = TrainingBatches(Cache(broken, 0.0), batch=6, crop=14, sides=(16, 16), flip=True, seed=0)
    ours, theirs = join(once), join(once)
    assert opened(ours[0]).bad == opened(theirs[0]).bad == once[0].bad
    assert len(once[0].bad) >= 2


def test_a_killed_training_is_not_waited_for_and_leaves_nothing(alone, memory):
    def train(begun):
        how = {"data": "images", "workers": 1, "pin": False}
        for _ in iterate_shared(batches(), range(STEPS), **how):
            begun.set()
            time.sleep(600)

    begun = FORK.Event()
    other = FORK.Process(target=train, args=(begun,))
    other.start()
    assert begun.wait(60)
    with shared._sharing(batches(), range(STEPS), "images", reach=REACH) as training:
        assert_same(training[0], alone[0])
        assert batches_in(training.folder)
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        start = time.monotonic()
        for step, expected in enumerate(alone):
            assert_same(training[step], expected)
        assert time.monotonic() - start < shared.PATIENCE
    assert not list(memory.iterdir())


def test_what_killed_trainings_left_is_not_taken_for_ours(alone, join):
    ours = join()
    ours._place(0).write_bytes(b"of another time")
    ours.reader.unlink()
    ours, _ = join(), join()
    assert_same(ours[0], alone[0])


def test_a_folder_without_readers_goes_when_the_next_training_begins(join, memory, monkeypatch):
    folder = join().folder
    for reader in ranges_in(folder):
        reader.unlink()
    join(data="others")
    assert folder.exists()  # where somebody may be about to join
    os.utime(folder, (0, 0))
    join(data="again others")
    assert not folder.exists()


def test_a_folder_removed_meanwhile_costs_but_the_sharing(alone, join, memory):
    ours, theirs = join(), join()
    assert_same(ours[0], alone[0])
    for path in ours.folder.iterdir():
        path.unlink()
    ours.folder.rmdir()
    for training in (ours, theirs):
        assert_same(training[1], alone[1])


def test_where_memory_is_short_each_loads_for_itself(alone, join, monkeypatch):
    monkeypatch.setattr(shared, "ROOM", 1e-15)
    assert join().crop == 14  # the training's own batches


def test_memory_that_fills_up_costs_but_the_sharing(alone, join, monkeypatch):
    ours, _ = join(), join()

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(shared, "save_file", fail)
    for step in (0, 1):
        assert_same(ours[step], alone[step])
    assert ours.full
    assert not batches_in(ours.folder)


@pytest.mark.parametrize("spoil", [
    lambda place: place.mkdir(mode=0o777) or place.chmod(0o777),
    lambda place: place.symlink_to(place.parent),
    lambda place: place.touch(),
], ids=["open to all", "a link", "a file"])  # fmt: skip
def test_nothing_is_shared_where_others_could_put_something(memory, join, spoil):
    spoil(memory)
    assert not isinstance(join(), SharedBatches)


def test_a_system_without_such_memory_shares_nothing(join, monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "MEMORY", tmp_path / "none")
    assert not isinstance(join(), SharedBatches)
