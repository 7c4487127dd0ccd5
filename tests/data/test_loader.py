"""Batches depend on the step alone; undecodable images count in training, are fatal in testing."""

import itertools
import multiprocessing
import re
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from helpers import make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.data import loader
from delving.data.augment import View, center_view, resize_whole, rows_of, samples_of, ten_views
from delving.data.images import UndecodableImageError
from delving.data.loader import (
    Batch,
    Cache,
    TrainingBatches,
    Views,
    cached,
    count_cores,
    count_workers,
    decoding_threads,
    iterate,
)
from delving.data.processes import start_method
from delving.signals import HEEDED

COUNT, CROP = 11, 14
IMAGES = make_images([(16 + i, 20 + i % 3) for i in range(COUNT)], classes=3)


def batches(images=IMAGES, *, batch=4, seed=0, budget=0.0, share=(0, 1)):
    return TrainingBatches(Cache(images, budget), batch=batch, crop=CROP, sides=(16, 32),
                           flip=True, seed=seed, share=share)  # fmt: skip


def take(dataset, keys, workers=0):
    return list(iterate(dataset, keys, workers=workers, pin=False))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert a.bad == b.bad


@pytest.fixture(scope="module")
def alone():
    return take(batches(), range(9))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_loader_processes_changes_nothing(alone, workers):
    assert_equal(take(batches(), range(9), workers), alone)


@pytest.mark.parametrize("first", [1, 4, 8])
def test_a_run_taken_up_in_the_middle_sees_the_same(alone, first):
    assert_equal(take(batches(), range(first, 9)), alone[first:])


@pytest.mark.parametrize("budget", [0, 3000, 1e9])
def test_what_is_kept_in_memory_changes_nothing(alone, budget):
    dataset = batches(budget=budget)
    assert_equal(take(dataset, range(9)), alone)
    assert_equal(take(dataset, range(9)), alone)


def test_another_seed_sees_other_batches(alone):
    other = take(batches(seed=1), range(9))
    assert not any(torch.equal(a.pixels, b.pixels) for a, b in zip(alone, other, strict=True))


def test_a_batch_is_bytes_labels_and_draws(alone):
    batch = alone[0]
    assert (batch.pixels.shape, batch.pixels.dtype) == ((4, CROP, CROP, 3), torch.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((4,), torch.int64)
    assert (batch.color.shape, batch.color.dtype) == ((4, 3), torch.float32)
    assert batch.bad == []


@settings(max_examples=15)
@given(st.integers(1, 30))
def test_labels_follow_the_images_and_each_counts_once_an_epoch(batch):
    steps = -(-2 * COUNT // batch)
    labels = np.concatenate([b.labels for b in take(batches(batch=batch), range(steps))])
    indices = np.concatenate([samples_of(s, batch, seed=0, images=COUNT)[1] for s in range(steps)])
    assert (labels == IMAGES.labels[indices]).all()
    for epoch in range(2):
        held = labels[epoch * COUNT : (epoch + 1) * COUNT]
        assert sorted(held.tolist()) == sorted(IMAGES.labels.tolist())


class CountingReader:
    def __init__(self, reader):
        self.reader, self.calls = reader, 0

    def __call__(self, name):
        self.calls += 1
        return self.reader(name)


def counted(images):
    reader = CountingReader(images.read)
    return type(images)(images.names, images.labels, images.classes, images.titles, reader), reader


# --- shares of a batch ---
@settings(max_examples=100)
@given(st.data(), st.integers(1, 300))
def test_the_rows_of_all_ranks_are_the_batch_in_shares_of_almost_one_size(data, batch):
    ranks = data.draw(st.integers(1, batch))
    parts = [range(batch)[rows_of(batch, rank, ranks)] for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(batch))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize(
    ("rank", "ranks", "said"),
    [(0, 5, "a batch of 4 for 5 ranks"), (2, 2, "rank 2: choose 0 to 1"), (-1, 2, "rank -1")],
)
def test_a_rank_without_rows_is_refused(rank, ranks, said):
    with pytest.raises(ValueError, match=said):
        rows_of(4, rank, ranks)
    with pytest.raises(ValueError, match=said):
        batches(share=(rank, ranks))[0]


SPOILT = make_images([(16 + i, 20 + i % 3) for i in range(COUNT)], classes=COUNT, bad=(2, 3, 9))


SOME = [(1, 1), (2, 0), (2, 4), (3, 1), (4, 2)]
OTHERS = sorted(set(itertools.product((1, 2, 3, 4), (0, 1, 2, 4))) - set(SOME))


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [*SOME, *(pytest.param(*each, marks=pytest.mark.long) for each in OTHERS)],
)
def test_the_shares_of_all_ranks_are_the_batch_bit_for_bit(ranks, workers):
    """Across the ends of three epochs, with s and flips drawn and undecodable images replaced."""
    steps, batch = range(3, 12), 5
    whole = take(batches(SPOILT, batch=batch), steps)
    assert any(found.bad for found in whole)
    shares = [
        take(batches(SPOILT, batch=batch, share=(rank, ranks)), steps, workers)
        for rank in range(ranks)
    ]
    joined = [
        Batch(*(torch.cat(part) for part in list(zip(*parts, strict=True))[:3]),
              [name for part in parts for name in part.bad])
        for parts in zip(*shares, strict=True)
    ]  # fmt: skip
    assert_equal(joined, whole)


def test_a_rank_decodes_its_own_rows_alone():
    for rank in range(2):
        images, reader = counted(IMAGES)
        batches(images, batch=5, share=(rank, 2))[0]
        assert reader.calls == (2, 3)[rank]


# --- images that cannot be decoded ---
SIZES = [(16, 16)] * COUNT


def test_an_undecodable_image_is_named_and_replaced_by_the_next_one():
    images = make_images(SIZES, classes=COUNT, bad=(3, 4, COUNT - 1))
    found = take(batches(images, batch=COUNT), range(2))
    for step, batch in enumerate(found):
        _, indices = samples_of(step, COUNT, seed=0, images=COUNT)
        replaced = {3: 5, 4: 5, COUNT - 1: 0}
        assert batch.labels.tolist() == [replaced.get(i, i) for i in indices.tolist()]
        assert set(batch.bad) == {images.names[i] for i in replaced}
    assert_equal(take(batches(images, batch=COUNT), range(2), workers=1), found)


def test_the_others_of_a_batch_are_as_if_nothing_had_happened():
    sound = take(batches(make_images(SIZES)), range(3))
    spoilt = take(batches(make_images(SIZES, bad=(3,))), range(3))
    for step, (a, b) in enumerate(zip(sound, spoilt, strict=True)):
        kept = samples_of(step, 4, seed=0, images=COUNT)[1] != 3
        assert torch.equal(a.pixels[kept], b.pixels[kept])
        assert torch.equal(a.color, b.color)


def test_where_nothing_can_be_decoded_training_stops():
    images = make_images([(16, 16)] * 3, bad=range(3))
    with pytest.raises(ValueError, match="no training image can be decoded"):
        take(batches(images), range(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_never_replaces_an_image_but_names_it(workers):
    images = make_images(SIZES, bad=(7,))
    views = Views(Cache(images, 0), partial(center_view, s=16, crop=CROP), [np.arange(COUNT)])
    [error] = take(views, range(1), workers)
    assert isinstance(error, UndecodableImageError)
    assert "007.png" in str(error)


def test_what_is_at_work_is_described_by_a_few_of_its_images():
    assert re.fullmatch(r"step 3 \((\d+\.png, ){3}\.\.\.\)", batches(batch=4).describe(3))
    assert re.fullmatch(r"step 3 \((\d+\.png, )\d+\.png\)", batches(share=(1, 2)).describe(3))
    views = Views(Cache(IMAGES, 0), center_view, [np.array([0, 5]), np.array([2])])
    assert views.describe(0) == "a group of test images (000.png, 005.png)"


# --- views ---
def test_views_come_in_groups_with_their_indices():
    groups = [np.array([0, 5]), np.array([2])]
    view = partial(ten_views, s=16, crop=CROP)
    found = take(Views(Cache(IMAGES, 0), view, groups), range(2))
    assert [indices.tolist() for indices, _ in found] == [[0, 5], [2]]
    assert found[0][1].shape == (2, 10, CROP, CROP, 3)
    assert (found[1][1][0].numpy() == view(IMAGES.load(2))).all()


# --- the cache ---
def test_a_cache_decodes_once_what_fits_its_budget():
    images, reader = counted(make_images([(16, 16)] * 4))
    cache = Cache(images, budget=2 * 16 * 16 * 4)
    for _ in range(3):
        assert [cache.load(i).size for i in range(4)] == [(16, 16)] * 4
    assert reader.calls == 4 + 2 + 2
    assert cache.budget == 0
    assert cache.size(0) == cache.size(3) == (16, 16)


@pytest.mark.parametrize("budget", [1, 16 * 16 * 4])
def test_a_file_is_read_once_for_a_view_whether_it_is_kept_or_not(budget):
    images, reader = counted(make_images([(16, 16)], classes=1))
    Cache(images, budget).cut(0, View(16, CROP, (0.5, 0.5), False))
    assert reader.calls == 1


def test_only_this_process_keeps_images():
    assert cached(IMAGES, gigabytes=2, workers=0).budget == 2e9
    assert cached(IMAGES, gigabytes=2, workers=3).budget == 0


def test_the_number_of_workers_is_as_asked_or_fits_the_machine():
    assert [count_workers(n) for n in (0, 1, 7)] == [0, 1, 7]
    assert 0 <= count_workers(-1) <= max(0, count_cores() - 2)
    assert count_workers(-1) <= 16


def test_ranks_and_trainings_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.setattr(loader, "count_cores", lambda: 16)
    assert [count_workers(-1, sharing) for sharing in (1, 2, 4, 8, 16)] == [14, 6, 2, 0, 0]
    monkeypatch.setenv(loader.SHARING, "4")
    assert [count_workers(-1, sharing) for sharing in (1, 2)] == [2, 0]
    assert count_workers(7) == 7


@pytest.mark.parametrize(("jobs", "workers"), [(1, 14), (2, 7), (5, 2), (7, 1), (16, 0)])
def test_trainings_side_by_side_on_a_gpu_leave_a_core_each(monkeypatch, jobs, workers):
    monkeypatch.setattr(loader, "count_cores", lambda: 16)
    monkeypatch.setenv(loader.SHARING, str(jobs))
    assert count_workers(-1, gpu=True) == workers


def test_by_itself_no_process_is_started_where_each_would_import_torch_anew(monkeypatch):
    """As on macOS, where each pass over the validation images would do so too."""
    monkeypatch.setattr("delving.data.loader.count_cores", lambda: 16)
    assert count_workers(-1) == 14
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn", "fork"])
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    assert (count_workers(-1), count_workers(3)) == (0, 3)


@pytest.mark.parametrize(
    ("usual", "chosen", "method", "count"),
    [
        ("fork", None, "fork", 14),
        ("forkserver", None, "fork", 14),  # Python 3.14 on Linux
        ("forkserver", "forkserver", "fork", 14),  # so it says once a lock was made
        ("forkserver", "spawn", "spawn", 0),
        ("fork", "forkserver", "forkserver", 0),
        ("spawn", None, "spawn", 0),
    ],
)
def test_processes_are_forked_unless_the_system_or_the_program_forbids(
    usual, chosen, method, count, monkeypatch
):
    """Others import torch anew; a GPU would wait for images that one process alone decodes."""
    monkeypatch.setattr("delving.data.loader.count_cores", lambda: 16)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [usual, "spawn"])
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: chosen)
    assert start_method() == method
    assert (count_workers(-1), count_workers(3), count_workers(-1, gpu=True)) == (count, 3, 14)


# --- a fixed s: images are resized once, as a whole ---
def test_at_a_fixed_s_a_view_is_a_slice_of_the_whole_resized_image():
    source = Cache(IMAGES, 1e9, side=16)
    batches = TrainingBatches(source, batch=COUNT, crop=CROP, sides=(16, 16), flip=False, seed=0)
    _, indices = samples_of(0, COUNT, seed=0, images=COUNT)
    pixels = batches[0].pixels.numpy()
    for row, index in enumerate(indices):
        whole = resize_whole(IMAGES.load(int(index)), 16)
        height, width = whole.shape[:2]
        slices = [
            whole[y : y + CROP, x : x + CROP]
            for y in range(height - CROP + 1)
            for x in range(width - CROP + 1)
        ]
        assert any((pixels[row] == each).all() for each in slices)


def test_a_kept_image_is_decoded_and_resized_once():
    source = Cache(IMAGES, 1e9, side=16)
    assert source.load(3) is source.load(3)
    assert min(source.load(3).shape[:2]) == 16
    assert source.size(3) == IMAGES.load(3).size


def test_signals_do_not_reach_loader_processes():
    """Else TERM to the process group would end a loader before the training saves its state."""
    views = Views(Cache(IMAGES, 0), _handlers_as_view, [np.array([0])])
    [(_, found)] = take(views, range(1), 1)
    assert found.flatten().tolist() == [1] * len(HEEDED)


def _handlers_as_view(image):
    ignored = [signal.getsignal(number) == signal.SIG_IGN for number in HEEDED]
    return np.array(ignored, np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fixed_s_is_cut_from_the_same_pixels_with_and_without_loader_processes(workers):
    def batches(source):
        return TrainingBatches(source, batch=4, crop=CROP, sides=(16, 16), flip=True, seed=0)

    here = batches(cached(IMAGES, gigabytes=1, workers=0, side=16))[1]
    source = cached(IMAGES, gigabytes=1, workers=workers, side=16)
    [there] = take(batches(source), range(1, 2), workers)
    assert (there.pixels == here.pixels).all()


def test_after_ctrl_c_no_thread_begins_another_image():
    """`delving data verify` submits a thousand at once."""
    begun, handed, until = [], [], time.monotonic() + 5

    def decode(number):
        begun.append(number)
        while time.monotonic() < until and not (handed and handed[-1].cancelled()):
            time.sleep(0.001)  # images being decoded end after the Ctrl-C

    def interrupted():
        with decoding_threads() as pool:
            handed.extend(pool.submit(decode, number) for number in range(1000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) <= count_cores()
