"""The most that this machine can do, measured: matrix products and copies. A limit is the best of
several turns, since a machine shared with others has slow moments."""

from collections.abc import Callable
from functools import cache

import torch

from delving.bench import rounds

TURNS = 5
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """Operations a second of one large matrix product: a multiply-add counts as two."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=TYPES[precision]) for _ in range(2))
    return 2 * n**3 / _least_seconds(lambda: a @ b, device)


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read plus written, of a copy much larger than any cache."""
    count = 2**29 if device.type == "cuda" else 2**26
    a = torch.randn(count // 4, device=device)
    b = torch.empty_like(a)
    return 2 * count / _least_seconds(lambda: b.copy_(a), device)


def _least_seconds(work: Callable[[], object], device: torch.device) -> float:
    each = rounds.SECONDS / TURNS
    return min(rounds.seconds_each(work, device, each) for _ in range(TURNS))
