"""What can be measured, by name, and the rows of one name or of all."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from delving.bench.loading import bench_loader
from delving.bench.racing import bench_ranks, bench_side_by_side
from delving.bench.rectifiers import bench_rectifier
from delving.bench.rounds import Row
from delving.bench.starting import bench_start
from delving.bench.testing import bench_dense
from delving.bench.training import bench_eval, bench_train
from delving.config import compose
from delving.data.loader import count_cores
from delving.device import pick_device
from delving.words import likeliest, shown

LARGE = ("a", "b", "c", "small14")
MOST_RANKS = 8  # the paper's


def measure(what: str, words: Sequence[str], rounds: int) -> Iterator[tuple[str, Row | Exception]]:
    """Yields (name, row) as rows are measured: those of one name, or of every name for `all`.

    With `all`, an error of whatever kind (compilers have their own) is yielded in place of the
    rows that the name still lacks, so that the other names are measured all the same.

    Args:
        rounds: how often the ways take turns, after one turn to warm up.
        words: overrides. If they name neither a model nor a scale, a GPU measures the paper's
            nets, and a CPU those of scale cpu and one of the paper's size.

    Raises:
        ValueError: no such name, or a word that would change nothing.
        Interrupted: a signal came.
    """
    if what != "all" and what not in WHAT:
        choices = ", ".join([*WHAT, "all"])
        raise ValueError(f"bench {what}: choose from {choices}{likeliest(what, [*WHAT, 'all'])}")
    if what == "rectifier":
        _check_of_rectifier(words)
    for name in WHAT if what == "all" else [what]:
        # data.root is for the loader alone: the others make their own noise.
        own = [w for w in words if name == "loader" or not w.startswith("data.root=")]
        try:
            for row in WHAT[name](own, rounds):
                yield name, row
                _release()
        except Exception as error:
            if what != "all":
                raise
            yield name, error


def _check_of_rectifier(words: Sequence[str]) -> None:
    compose(list(words))  # a slip is told as one
    odd = [word for word in words if word.partition("=")[0] not in ("device", "precision")]
    if odd:
        raise ValueError(f"bench rectifier: {shown(odd[0])}: it measures PReLU, and takes device "
                         "and precision alone; bench train measures nets")  # fmt: skip


def _release() -> None:
    """Hands back the GPU memory that a row took: the next row may need it in other processes."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _nets(words: Sequence[str], large: Sequence[str]) -> list[list[str]]:
    """Words for each net to measure."""
    if any(word.startswith(("model=", "scale=")) for word in words):
        return [list(words)]
    if pick_device(compose(list(words)).device).type == "cpu":
        return [[*words, "scale=cpu"], [*words, "scale=cpu", "model=a"],
                [*words, "scale=paper", "model=small14"]]  # fmt: skip
    return [[*words, "scale=paper", f"model={model}"] for model in large]


def _train(words: Sequence[str], rounds: int) -> Iterator[Row]:
    for net in _nets(words, LARGE):
        yield from bench_train(net, rounds)
    config = compose(list(words))
    if pick_device(config.device).type == "cpu" and config.scale == "cpu":
        cores = min(2, count_cores())
        for net in _nets(words, LARGE)[:2]:
            yield from bench_side_by_side([*net, "device=cpu"], cores, rounds)


def _eval(words: Sequence[str], rounds: int) -> Iterator[Row]:
    for net in _nets(words, LARGE[:1]):
        yield from bench_eval(net, rounds)


def _dense(words: Sequence[str], rounds: int) -> Iterator[Row]:
    """On a CPU also A at the paper's size, whose windows share most; it takes a minute."""
    nets = _nets(words, ("a", "c"))
    if len(nets) > 1 and pick_device(compose(list(words)).device).type == "cpu":
        nets += [[*words, "scale=paper", "model=a"]]
    for net in nets:
        yield from bench_dense(net, rounds)


def _scaling(words: Sequence[str], rounds: int) -> list[Row]:
    """Ranks on the GPUs if there are several, else on the CPU's cores, by gloo."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 1:  # ranks do not share a GPU
        words = [*words, "device=cpu"]
    devices = min(MOST_RANKS, gpus if gpus > 1 else max(2, count_cores()))
    counts = [2**n for n in range(1, int(math.log2(devices)) + 1)]
    return bench_ranks(_nets(words, ("a",))[0], counts, rounds)


WHAT: dict[str, Callable[[Sequence[str], int], Iterable[Row]]] = {
    "rectifier": bench_rectifier,
    "train": _train,
    "eval": _eval,
    "dense": _dense,
    "loader": bench_loader,
    "scaling": _scaling,
    "start": bench_start,
}
