"""Calls kernels.cpp with tensors, and has operator.cpp do so."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from delving.kernels.compiled import compile_and_load, is_due

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
VECTOR = 64  # numbers in a row that the kernels make good use of
P, N = ctypes.c_void_p, ctypes.c_long
OPERATOR = ("rectify", "rectify_backward")  # what operator.cpp calls
SIGNATURES = {
    "rectify": [P] * 4 + [N] * 4 + [ctypes.c_int],
    "rectify_backward": [P] * 6 + [N] * 4 + [ctypes.c_int],
    "spp": [P] * 2 + [N] * 4 + [P, N, N],
    "spp_windows": [P] * 2 + [N] * 4 + [P, N, N, N],
    "spp_backward": [P] * 3 + [N] * 4 + [P, N, N],
}


def knows(x: Tensor) -> bool:
    """Whether there are kernels for a tensor of this type and layout, channels innermost."""
    return x.dtype in TYPES and channels_innermost(x) and is_plain(x) and load() is not None


def rectify(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    """As fused.py's rectify_plain."""
    out = torch.empty_like(x)
    _call("rectify", x, *_pointers(x, bias, slope, out), *_sizes(slope, x), learned)
    return out


def rectify_backward(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As fused.py's rectify_backward_plain."""
    grad_x = torch.empty_like(out)
    grad_bias, grad_slope = (slope.new_empty(out.shape[1]) for _ in range(2))
    pointers = _pointers(grad, out, slope, grad_x, grad_bias, grad_slope)
    _call("rectify_backward", out, *pointers, *_sizes(slope, out), learned)
    return grad_x, grad_bias, grad_slope


def spp(x: Tensor, levels: Sequence[int]) -> tuple[Tensor]:
    """As spp.py's pool_levels; nothing else has to be kept for the gradient."""
    out = x.new_empty(len(x), _features(x, levels))
    _call("spp", x, *_pointers(x, out), *_shape(x), *_list(levels), out.shape[1])
    return (out,)


def spp_windows(x: Tensor, levels: Sequence[int], size: int) -> Tensor:
    """pool_levels of every size x size window: (N, rows, columns, features)."""
    rows, columns = (side - size + 1 for side in x.shape[2:])
    out = x.new_empty(len(x), rows, columns, _features(x, levels))
    _call("spp_windows", x, *_pointers(x, out), *_shape(x), *_list(levels), out.shape[3], size)
    return out


def spp_backward(grad: Tensor, x: Tensor, levels: Sequence[int]) -> Tensor:
    """The gradient of `spp`'s x; `grad` is that of its result."""
    grad_x, grad = torch.empty_like(x), grad.contiguous()
    pointers = _pointers(grad, x, grad_x)
    _call("spp_backward", x, *pointers, *_shape(x), *_list(levels), grad.shape[1])
    return grad_x


def channels_innermost(x: Tensor) -> bool:
    """Whether x is (N, C), or (N, C, H, W) channels last, without gaps."""
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.dim() in (2, 4) and x.is_contiguous(memory_format=layout)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor's numbers lie at its address. Not so in subclasses (fake ones, distributed
    ones), nor where torch only notes that they are negated or all zero."""
    whole = type(x) in (Tensor, nn.Parameter) and not x.is_neg()
    return whole and (x.data_ptr() != 0 or x.numel() == 0)


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    """The tensors' addresses; the caller must keep the tensors alive until the call is over."""
    return [t if t is None else t.data_ptr() for t in tensors]


def _sizes(slope: Tensor, x: Tensor) -> list[int]:
    channels = x.shape[1]
    return [slope.shape[0], x.numel(), channels, channels * max(1, VECTOR // channels)]


def _shape(x: Tensor) -> list[int]:
    images, channels, height, width = x.shape
    return [images, height, width, channels]


def _features(x: Tensor, levels: Sequence[int]) -> int:
    return x.shape[1] * sum(bins * bins for bins in levels)


def _list(levels: Sequence[int]) -> tuple[ctypes.Array, int]:
    return (ctypes.c_long * len(levels))(*levels), len(levels)


def _call(name: str, x: Tensor, *arguments: object) -> None:
    if _function(name, x.dtype)(*arguments):
        raise MemoryError("no memory is left for a kernel")


@cache
def _function(name: str, dtype: torch.dtype) -> ctypes._CFuncPtr:
    function = getattr(load(), f"{name}_{TYPES[dtype]}")
    function.argtypes = SIGNATURES[name]
    return function


ENLISTING = threading.Lock()  # one thread would find the operator half registered by another
Operator = Callable[[Tensor, Tensor | None, Tensor, bool], Tensor | None]


def operator() -> Operator | None:
    """operator.cpp's operator, which returns None for tensors that the kernels do not take; None if
    there are no kernels, or nothing that compiles it."""
    return _operator() if load() is not None else None


@cache
def _operator() -> Operator | None:
    with ENLISTING:
        built = compile_and_load("operator.cpp", **_beside_torch())
        if built is None:
            return None
        functions = [_function(name, dtype) for dtype in TYPES for name in OPERATOR]
        built.enlist.argtypes = [P] * len(functions) + [N]
        built.enlist(*(ctypes.cast(function, P) for function in functions), VECTOR)
        registered = getattr(torch.ops.delving_cpu, "rectify", None)
        return registered and registered.default


def is_to_be_compiled() -> bool:
    """Whether the first call of `operator` takes a while, since no library is kept here."""
    if is_due("kernels.cpp"):
        return True
    return load() is not None and is_due("operator.cpp", **_beside_torch())


def _beside_torch() -> dict:
    """How to compile and link what belongs to the PyTorch that is running."""
    folder = Path(torch.__file__).parent
    include = folder / "include"
    build = f"{torch.__version__}-{torch.version.git_version}"  # for the library's name alone
    flags = ("-std=c++20", "-O1", "-DAT_PER_OPERATOR_HEADERS", f"-DTORCH={build}",
             f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
             f"-I{include}", f"-I{include / 'torch/csrc/api/include'}")  # fmt: skip
    return {"tuned": [flags], "links": [f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"]}


@cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels; None if there is no compiler, or none that compiles them."""
    return compile_and_load("kernels.cpp")
