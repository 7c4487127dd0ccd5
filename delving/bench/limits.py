"""What this machine can do at most, measured: products, copies."""

from functools import cache

import torch

from delving.bench.rounds import seconds_each

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiplications and additions a second of one large matrix product, both counted."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=TYPES[precision]) for _ in range(2))
    return 2 * n**3 / seconds_each(lambda: a @ b, device)


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, those read and those written, of a copy much larger than caches."""
    count = 2**29 if device.type == "cuda" else 2**26
    a = torch.randn(count // 4, device=device)
    b = torch.empty_like(a)
    return 2 * count / seconds_each(lambda: b.copy_(a), device)
