"""Launches programs.py and pooling.py on CUDA tensors, and chooses the sizes of their tiles."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from delving.kernels.native import TYPES, channels_innermost, is_plain
from delving.words import cut

TILE = 4096  # numbers that a program holds at once: 32 per thread, or 8 of one that sums
POOL_TILE = 1024  # maxima that a program holds at once, each of several numbers
COLUMNS = 128  # of a tile, at most: 256 bytes of bf16 in a row
WAVES = 2  # programs that sum, per multiprocessor: as many as its registers hold at once
WARPS = 16  # of a program that sums
POOLED = 256  # channels of an SPP program, at most: four per thread
WINDOWED = 4096  # numbers that a program for windows of SPP holds at once
FOLDED = 256  # blocks that a program folds
PREPARED = 1024  # numbers of pixels that a program prepares


def programs() -> SimpleNamespace | None:
    """The programs, or None: not every machine has Triton and can compile. It takes a second to
    load."""
    return look_for_programs()[0]


@cache
def look_for_programs() -> tuple[SimpleNamespace | None, str]:
    """The programs, or None and why there are none."""
    if importlib.util.find_spec("triton") is None:
        return None, "`pip install triton` makes training faster"
    from delving.kernels import pooling, programs

    found = SimpleNamespace(**(vars(pooling) | vars(programs)))
    fault = _launch(found) if torch.cuda.is_available() else ""
    return (None if fault else found), fault


def _launch(found: SimpleNamespace, device: str = "cuda") -> str:
    """Why the programs cannot be used here, or nothing. Triton's launcher needs a C compiler and
    Python's headers; and the programs must give known results."""
    try:
        for number in TYPES:
            if fault := _wrong(number, found, device):
                return f"Triton's {fault} is wrong here"
    except Exception as error:  # compilers fail in many ways; the plain operators do not
        told = next((line for line in str(error).splitlines() if line.strip()), "")
        return f"Triton cannot compile here ({type(error).__name__}: {cut(told.strip(), 160)})"
    return ""


def _wrong(number: torch.dtype, found: SimpleNamespace, device: str) -> str:
    """The name of the first program whose result for a few numbers is not the known one, if any."""
    slope, sums = torch.full((1,), 0.5, device=device), torch.empty(1, 2, 1, device=device)
    bits = found.tl.int32 if number == torch.float32 else found.tl.int16
    tile = {"SHARED": 1, "LEARNED": True, "BITS": bits, "ROWS": 16, "COLUMNS": 1}
    x, grad = (torch.tensor(v, dtype=number, device=device)[:, None] for v in ([-2, 4], [1, 3]))
    out, grad_x = torch.empty_like(x), torch.empty_like(x)
    found.rectify[1, 1](x, slope, slope, out, 2, 1, BIASED=False, **tile)
    found.rectify_backward[1, 1](grad, out, slope, grad_x, sums, 2, 1, **tile)
    cells = torch.tensor([2, 5, 5, 5], dtype=number, device=device)  # of a map of two by two
    levels = torch.tensor([1], dtype=torch.int32, device=device)
    most, pooled, tied = (
        torch.empty(1, dtype=t, device=device) for t in (number, number, torch.int16)
    )
    shares = torch.empty_like(cells)
    found.pool[1, 1](cells, levels, pooled, most, tied, 1, 2, 2, 1, 1, COLUMNS=1)
    given = (pooled, cells, most, tied, levels, shares)
    found.pool_backward[4, 1](*given, 1, 2, 2, 1, 1, 1, COLUMNS=1)
    windows, folded = (torch.empty(n, dtype=number, device=device) for n in (4, 256))
    found.pool_windows[4, 1](cells, windows, 1, 2, 2, 2, 2, 1, 0, 1,
                             SIDE=1, EXTENT=1, BINS=1, COLUMNS=1)  # fmt: skip
    found.fold[(1,)](cells.repeat_interleave(3).float(), folded, 16, 2, 2, 4, 4, ROWS=16)
    one, pixel = most.new_tensor([4], dtype=torch.float32), cells[:3].to(torch.uint8)
    ready = torch.empty(3, device=device)
    found.prepare[(1,)](pixel, 2 * cells.float(), cells.float(), one, ready, 1, 1,
                        SHIFTED=True, NUMBERS=4)  # fmt: skip
    best, which = most.new_empty(1), torch.empty(1, dtype=torch.uint8, device=device)
    beside = {**tile, "SIDE": 2}
    sizes = (1, 1, 2, 2)
    found.rectify_pool[1, 1](-cells, slope, slope, best, which, *sizes, BIASED=False, **beside)
    routed, parts = torch.empty_like(cells), torch.empty_like(sums)
    given = (pooled, best, which, slope, routed, parts)
    found.rectify_pool_backward[1, 1](*given, *sizes, BELOW=0, BESIDE=0, **beside)
    told = {
        "rectify": ([out], [-1, 4]),
        "rectify_backward": ([grad_x, sums], [0.5, 3, 3.5, -2]),
        "pool": ([pooled, most, tied], [5, 5, 2]),
        "pool_backward": ([shares], [0, 1.25, 2.5, 1.25]),
        "pool_windows": ([windows], [2, 5, 5, 5]),
        "fold": ([folded.view(16, 16)[10]], [2] * 3 + [5] * 9 + [0] * 4),
        "prepare": ([ready], [1, 2.5, 2.5]),
        "rectify_pool": ([best, which], [-1, 0]),
        "rectify_pool_backward": ([routed, parts], [2.5, 0, 0, 0, 2.5, -10]),
    }
    for program, (results, known) in told.items():
        if torch.cat([result.flatten().float() for result in results]).tolist() != known:
            return program
    return ""


def knows(x: Tensor) -> bool:
    """Whether there are programs for a tensor of this type and layout, channels innermost."""
    return x.dtype in TYPES and channels_innermost(x) and is_plain(x) and programs() is not None


def rectify(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    """As fused.py's rectify_plain."""
    out = torch.empty_like(x)
    rows, channels, tile = _tiles(x)
    grid = (_shares(rows, tile["ROWS"]), _shares(channels, tile["COLUMNS"]))
    given = (x, slope if bias is None else bias, slope, out, rows, channels)
    fixed = _fixed(x, slope, learned) | tile
    with torch.cuda.device_of(x):  # Triton launches on the current device
        programs().rectify[grid](*given, BIASED=bias is not None, **fixed)
    return out


def rectify_backward(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As fused.py's rectify_backward_plain. The order of sums depends on sizes and device alone."""
    grad_x = torch.empty_like(out)
    rows, channels, tile = _tiles(out)
    down, across, sums = _sums(out, slope, rows, channels, tile)
    given = (grad, out, slope, grad_x, sums, rows, channels)
    with torch.cuda.device_of(out):
        fixed = _fixed(out, slope, learned) | tile
        programs().rectify_backward[(down, across)](*given, **fixed, num_warps=WARPS)
    grad_bias, grad_slope = sums.sum(0)
    return grad_x, grad_bias, grad_slope


def rectify_pool(
    x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool, side: int
) -> tuple[Tensor, Tensor]:
    """As fused.py's rectify_pool; also which cell of its window each maximum comes from."""
    images, channels, height, width = x.shape
    out = _channels_last((images, channels, height // side, width // side), x)
    chosen = torch.empty_like(out, dtype=torch.uint8)
    rows, channels, tile = _tiles(out, POOL_TILE)
    grid = (_shares(rows, tile["ROWS"]), _shares(channels, tile["COLUMNS"]))
    given = (x, slope if bias is None else bias, slope, out, chosen, rows, channels, height, width)
    fixed = _fixed(x, slope, learned) | tile
    with torch.cuda.device_of(x):
        programs().rectify_pool[grid](*given, BIASED=bias is not None, SIDE=side, **fixed)
    return out, chosen


def rectify_pool_backward(
    grad: Tensor, out: Tensor, chosen: Tensor, slope: Tensor, learned: bool,
    shape: Sequence[int], side: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of rectify_pool's x (of this shape), bias and slope, as rectify_backward's."""
    grad_x = _channels_last(shape, out)
    (height, width), (rows, channels, tile) = shape[2:], _tiles(out)
    down, across, sums = _sums(out, slope, rows, channels, tile)
    given = (grad, out, chosen, slope, grad_x, sums, rows, channels, height, width)
    rest = {"SIDE": side, "BELOW": height % side, "BESIDE": width % side}
    fixed = _fixed(out, slope, learned) | tile | rest
    with torch.cuda.device_of(out):
        programs().rectify_pool_backward[(down, across)](*given, **fixed, num_warps=WARPS)
    grad_bias, grad_slope = sums.sum(0)
    return grad_x, grad_bias, grad_slope


def spp(x: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """As spp.py's pool_levels; also each bin's maximum (N, bins, channels), and how many of the
    bin's columns have it."""
    images, channels, height, width = x.shape
    bins = sum(side * side for side in levels)
    out = x.new_empty(images, channels * bins)
    most = x.new_empty(images, bins, channels)
    tied = x.new_empty(images, bins, channels, dtype=torch.int16)
    columns = _columns(channels, POOLED)
    grid = (images * bins, _shares(channels, columns))
    sizes = (channels, height, width, out.shape[1], bins)
    with torch.cuda.device_of(x):
        given = (x, _list(levels, x), out, most, tied)
        programs().pool[grid](*given, *sizes, COLUMNS=columns, num_warps=2)
    return out, most, tied


def spp_backward(
    grad: Tensor, x: Tensor, most: Tensor, tied: Tensor, levels: Sequence[int]
) -> Tensor:
    """The gradient of `spp`'s x; `grad` is that of its result."""
    grad_x, grad = torch.empty_like(x), grad.contiguous()
    images, channels, height, width = x.shape
    columns = _columns(channels, POOLED)
    grid = (images * height * width, _shares(channels, columns))
    sizes = (channels, height, width, grad.shape[1], most.shape[1], len(levels))
    given = (grad, x, most, tied, _list(levels, x), grad_x)
    with torch.cuda.device_of(x):
        programs().pool_backward[grid](*given, *sizes, COLUMNS=columns, num_warps=2)
    return grad_x


def spp_windows(x: Tensor, levels: Sequence[int], size: int) -> Tensor:
    """pool_levels of every size x size window: (N, rows, columns, features)."""
    images, channels, height, width = x.shape
    rows, columns = height - size + 1, width - size + 1
    features = channels * sum(side * side for side in levels)
    out, before = x.new_empty(images, rows, columns, features), 0
    for side in levels:
        bins = 1 << (side * side - 1).bit_length()
        extent = max(-(-(i + 1) * size // side) - i * size // side for i in range(side))
        wide = _columns(channels, min(512, max(16, WINDOWED // bins)))
        grid = (images * rows * columns, _shares(channels, wide))
        sizes = (channels, height, width, rows, columns, features, before, size)
        fixed = {"SIDE": side, "EXTENT": extent, "BINS": bins, "COLUMNS": wide}
        with torch.cuda.device_of(x):
            programs().pool_windows[grid](x, out, *sizes, **fixed)
        before += side * side
    return out


def fold(x: Tensor, number: torch.dtype) -> Tensor:
    """stem.py's blocks (N, 16, rows, columns), typed `number`, of (N, 3, H, W) channels last."""
    images, _, height, width = x.shape
    rows, columns = (height + 1) // 2 + 3, (width + 1) // 2 + 3
    out = _channels_last((images, 16, rows, columns), x, number)
    count = images * rows * columns
    with torch.cuda.device_of(x):
        given = (x, out, count, height, width, rows, columns)
        programs().fold[(_shares(count, FOLDED),)](*given, ROWS=FOLDED)
    return out


def prepare(pixels: Tensor, mean: Tensor, shift: Tensor | None, std: Tensor) -> Tensor:
    """As data/input.py's Input, of uint8 (N, H, W, 3) without gaps, and in fp32 the mean (3, H, W),
    the shift (N, 3) and the std ()."""
    images, height, width, _ = pixels.shape
    out = _channels_last((images, 3, height, width), mean)
    count, about = images * height * width, {"SHIFTED": shift is not None, "NUMBERS": PREPARED}
    given = (pixels, mean if shift is None else shift.contiguous(), mean.contiguous(), std, out)
    with torch.cuda.device_of(pixels):
        programs().prepare[(_shares(3 * count, PREPARED),)](*given, count, height * width, **about)
    return out


def _channels_last(shape: Sequence[int], like: Tensor, number: torch.dtype | None = None) -> Tensor:
    layout = {"memory_format": torch.channels_last, "device": like.device}
    return torch.empty(shape, dtype=number or like.dtype, **layout)


def _list(levels: Sequence[int], x: Tensor) -> Tensor:
    return _list_on(tuple(levels), x.device)


@cache
def _list_on(levels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.int32, device=device)


def _tiles(x: Tensor, size: int = TILE) -> tuple[int, int, dict[str, int]]:
    """(rows, channels) of x's numbers, and the sides of a tile of `size` of them."""
    channels = x.shape[1]
    columns = _columns(channels, COLUMNS)
    return x.numel() // channels, channels, {"ROWS": size // columns, "COLUMNS": columns}


def _sums(
    out: Tensor, slope: Tensor, rows: int, channels: int, tile: dict[str, int]
) -> tuple[int, int, Tensor]:
    """How many programs share the rows and the channels, and a tensor for what they sum."""
    across = _shares(channels, tile["COLUMNS"])
    down = min(_shares(rows, tile["ROWS"]), max(1, WAVES * _multiprocessors(out) // across))
    return down, across, slope.new_empty(down, 2, channels)


def _columns(channels: int, most: int) -> int:
    """How many channels a program has at once: a power of two, `most` at most."""
    return min(most, 1 << (channels - 1).bit_length())


def _shares(count: int, size: int) -> int:
    return -(-count // size)


def _fixed(x: Tensor, slope: Tensor, learned: bool) -> dict:
    """The constants that a rectifier's program is compiled for."""
    language = programs().tl
    bits = language.int32 if x.dtype == torch.float32 else language.int16
    return {"SHARED": int(slope.numel() == 1), "LEARNED": learned, "BITS": bits}


def _multiprocessors(x: Tensor) -> int:
    if x.device.type != "cuda":  # Triton's interpreter runs
        return 1
    return torch.cuda.get_device_properties(x.device).multi_processor_count
