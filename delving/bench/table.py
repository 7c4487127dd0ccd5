"""Which rows there are, and all of them put together."""

import math
from collections.abc import Callable, Iterator, Sequence

from delving.bench.loading import bench_loader
from delving.bench.racing import bench_ranks, bench_side_by_side
from delving.bench.rectifiers import bench_rectifier
from delving.bench.rounds import ROUNDS, Row
from delving.bench.starting import bench_start
from delving.bench.testing import bench_dense
from delving.bench.training import bench_eval, bench_train
from delving.config import compose
from delving.data.loader import count_cores
from delving.device import pick_device
from delving.words import nearest

LARGE = ("a", "b", "c", "small14")


def measure(
    what: str, words: Sequence[str], rounds: int = ROUNDS
) -> Iterator[tuple[str, list[Row] | Exception]]:
    """The rows of one name, or those of each where it is `all`: (name, rows). There an error takes
    the rows' place, so that it costs no others.

    Args:
        rounds: how often the ways take turns, after one turn to warm up.
        words: overrides. Where they name neither a model nor a scale, a GPU measures the paper's
            nets and a CPU those of scale cpu, and a narrow one of the paper's size.

    Raises:
        ValueError: no such name.
    """
    if what != "all" and what not in WHAT:
        choices = ", ".join([*WHAT, "all"])
        raise ValueError(f"bench {what}: choose from {choices}{nearest(what, [*WHAT, 'all'])}")
    for name in WHAT if what == "all" else [what]:
        # data.root is the loader's: the others make their own noise.
        own = [w for w in words if name == "loader" or not w.startswith("data.root=")]
        try:
            yield name, WHAT[name](own, rounds)
        except (OSError, RuntimeError, ValueError) as error:
            if what != "all":
                raise
            yield name, error


def _nets(words: Sequence[str], large: Sequence[str]) -> list[list[str]]:
    """Words for each net to measure."""
    if any(word.startswith(("model=", "scale=")) for word in words):
        return [list(words)]
    if pick_device(compose(list(words)).device).type == "cpu":
        return [[*words, "scale=cpu"], [*words, "scale=cpu", "model=a"],
                [*words, "scale=paper", "model=small14"]]  # fmt: skip
    return [[*words, "scale=paper", f"model={model}"] for model in large]


def _train(words: Sequence[str], rounds: int) -> list[Row]:
    rows = [row for net in _nets(words, LARGE) for row in bench_train(net, rounds)]
    config = compose(list(words))
    if pick_device(config.device).type == "cpu" and config.scale == "cpu":
        cores = min(2, count_cores())
        for net in _nets(words, LARGE)[:2]:
            rows += bench_side_by_side([*net, "device=cpu"], cores, rounds)
    return rows


def _eval(words: Sequence[str], rounds: int) -> list[Row]:
    return [row for net in _nets(words, LARGE[:1]) for row in bench_eval(net, rounds)]


def _dense(words: Sequence[str], rounds: int) -> list[Row]:
    """On a CPU A at the paper's size too, which takes a minute: its windows share most."""
    nets = _nets(words, ("a", "c"))
    if len(nets) > 1 and pick_device(compose(list(words)).device).type == "cpu":
        nets += [[*words, "scale=paper", "model=a"]]
    return [row for net in nets for row in bench_dense(net, rounds)]


def _scaling(words: Sequence[str], rounds: int) -> list[Row]:
    import torch

    cores = torch.cuda.device_count() or count_cores()
    counts = [2**n for n in range(1, int(math.log2(max(2, cores))) + 1)]
    return bench_ranks(_nets(words, ("a",))[0], counts, rounds)


WHAT: dict[str, Callable[[Sequence[str], int], list[Row]]] = {
    "rectifier": bench_rectifier,
    "train": _train,
    "eval": _eval,
    "dense": _dense,
    "loader": bench_loader,
    "scaling": _scaling,
    "start": bench_start,
}
