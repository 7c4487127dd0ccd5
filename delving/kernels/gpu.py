"""programs.py on CUDA tensors: sizes of tiles, and the launch."""

import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from delving.kernels.native import TYPES, channels_innermost
from delving.signals import Interrupted
from delving.words import cut

TILE = 4096  # numbers a program holds at once: 32 a thread
COLUMNS = 128  # at most; 256 bytes of bf16 in a row
WAVES = 2  # programs a multiprocessor, of those that sum: as many as its registers hold at once


def programs() -> ModuleType | None:
    """Triton takes a second to load, and is not there, or cannot compile, on every machine."""
    return look_for_programs()[0]


@cache
def look_for_programs() -> tuple[ModuleType | None, str]:
    """The programs, or None and why there are none."""
    if importlib.util.find_spec("triton") is None:
        return None, "`pip install triton` makes training faster"
    from delving.kernels import programs as found

    fault = _launch(found) if torch.cuda.is_available() else ""
    return (None if fault else found), fault


def _launch(found: ModuleType) -> str:
    """Why no program runs here, if none does: Triton's launcher wants a C compiler and Python's
    headers."""
    slope = torch.zeros(1, device="cuda")
    tile = {"SHARED": 1, "LEARNED": False, "ROWS": 16, "COLUMNS": 1}
    try:
        for number, bits in ((torch.float32, found.tl.int32), (torch.bfloat16, found.tl.int16)):
            x = torch.zeros(1, 1, dtype=number, device="cuda")
            given, sizes = (x, slope, slope, torch.empty_like(x)), (1, 1)
            found.rectify[1, 1](*given, *sizes, BIASED=False, BITS=bits, **tile)
            given = (x, x, slope, torch.empty_like(x), slope.new_empty(1, 2, 1))
            found.rectify_backward[1, 1](*given, *sizes, BITS=bits, **tile)
    except Interrupted:
        raise
    except Exception as error:  # compilers fail in many ways; the plain operators do not
        told = next((line for line in str(error).splitlines() if line.strip()), "")
        return f"Triton cannot compile here ({type(error).__name__}: {cut(told.strip(), 160)})"
    return ""


def knows(x: Tensor) -> bool:
    """Whether there are programs for a tensor of this type and layout, channels innermost."""
    return x.dtype in TYPES and channels_innermost(x) and programs() is not None


def rectify(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    """rectifier.py's."""
    out = torch.empty_like(x)
    rows, channels, tile = _tiles(x)
    grid = (_shares(rows, tile["ROWS"]), _shares(channels, tile["COLUMNS"]))
    given = (x, slope if bias is None else bias, slope, out, rows, channels)
    fixed = _fixed(x, slope, learned) | tile
    with torch.cuda.device_of(x):  # Triton takes the current one
        programs().rectify[grid](*given, BIASED=bias is not None, **fixed)
    return out


def rectify_backward(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """rectifier.py's. Sums are made in an order that depends on sizes and device alone."""
    grad_x = torch.empty_like(out)
    rows, channels, tile = _tiles(out)
    across = _shares(channels, tile["COLUMNS"])
    down = min(_shares(rows, tile["ROWS"]), max(1, WAVES * _multiprocessors(out) // across))
    sums = slope.new_empty(down, 2, channels)
    given = (grad, out, slope, grad_x, sums, rows, channels)
    with torch.cuda.device_of(out):
        programs().rectify_backward[(down, across)](*given, **_fixed(out, slope, learned), **tile)
    grad_bias, grad_slope = sums.sum(0)
    return grad_x, grad_bias, grad_slope


def _tiles(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """(rows, channels) of the numbers, and the sides of a tile."""
    channels = x.shape[1]
    columns = min(COLUMNS, 1 << (channels - 1).bit_length())
    return x.numel() // channels, channels, {"ROWS": TILE // columns, "COLUMNS": columns}


def _shares(count: int, size: int) -> int:
    return -(-count // size)


def _fixed(x: Tensor, slope: Tensor, learned: bool) -> dict:
    """What programs are compiled for."""
    language = programs().tl
    bits = language.int32 if x.dtype == torch.float32 else language.int16
    return {"SHARED": int(slope.numel() == 1), "LEARNED": learned, "BITS": bits}


def _multiprocessors(x: Tensor) -> int:
    if x.device.type != "cuda":  # the interpreter's
        return 1
    return torch.cuda.get_device_properties(x.device).multi_processor_count
