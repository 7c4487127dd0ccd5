"""A process of racing.py: reads a number of steps, takes them, writes images a second; repeats."""

import json
import os
import sys
import time
from functools import partial
from itertools import repeat

import torch

from delving.bench.training import build, take
from delving.device import settle
from delving.ranks import joined


def main() -> None:
    plain, words = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with joined() as ranks:
        bench = build(words, ranks)
        steps = bench.plain() if plain else None
        # One training for all rounds: with ranks, a training's first step takes twice as long.
        training = bench.training(repeat(bench.share(ranks)), ranks=ranks)
        for line in sys.stdin:
            count, start = int(line), time.perf_counter()
            (steps or partial(take, training))(count)
            settle(bench.device)
            images = count * len(bench.batch.labels) / ranks.size
            print(images / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
