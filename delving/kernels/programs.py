"""The fused rectifier (rectifier.py) as Triton programs, over (rows, channels) numbers in memory.

A program has a tile of ROWS x COLUMNS numbers at a time, COLUMNS of the channels.
"""

import triton
import triton.language as tl

REACH = tl.constexpr(2.0**-60)  # rectifier.py's


@triton.jit
def _slopes(slope, column, valid, SHARED: tl.constexpr, LEARNED: tl.constexpr):
    a = tl.load(slope + column * (1 - SHARED), mask=valid, other=1.0)
    if LEARNED:
        near = tl.where(a.to(tl.int32, bitcast=True) < 0, -REACH, REACH)  # -0.0 too
        a = tl.where(tl.abs(a) < REACH, near, a)
    return a


@triton.jit
def _nearest(f, z, bits):
    """f's bits, rounded to the nearest whose last one tells the side of z, but for that one; fp32
    as it is."""
    if bits.dtype == tl.int32:
        return bits
    start = f.to(tl.int32, bitcast=True) + tl.where(z > 0, 0, 0x10000)
    nearest = (start - 1 + ((start >> 17) & 1)) >> 16  # ties to a last bit but one of 1
    return tl.where(f == f, nearest.to(bits.dtype), bits)


@triton.jit
def rectify(
    x, bias, slope, out, rows, channels,
    BIASED: tl.constexpr, SHARED: tl.constexpr, LEARNED: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    a = _slopes(slope, column, valid, SHARED, LEARNED)[None, :]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * channels + column[None, :]
    inside = (row < rows)[:, None] & valid[None, :]
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        z += tl.load(bias + column, mask=valid, other=0.0)[None, :]
    f = tl.where(z > 0, z, a * z)
    bits = f.to(out.dtype.element_ty).to(BITS, bitcast=True)
    marked = (_nearest(f, z, bits) & -2) | (z > 0).to(BITS)
    y = tl.where(a < 0, marked, bits).to(out.dtype.element_ty, bitcast=True)
    tl.store(out + at, y, mask=inside)


@triton.jit
def rectify_backward(
    grad, out, slope, grad_x, sums, rows, channels,
    SHARED: tl.constexpr, LEARNED: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`sums` (programs, 2, channels): what each program adds to the gradients of bias and slope."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    slopes = _slopes(slope, column, valid, SHARED, LEARNED)
    a = slopes[None, :]
    of_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * ROWS
    while start < rows:  # no range: Triton 3.6's interpreter has none of tensors with numpy 2.4
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        at = row[:, None] * channels + column[None, :]
        inside = (row < rows)[:, None] & valid[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(out + at, mask=inside, other=0.0)
        mark = (y.to(BITS, bitcast=True) & 1) != 0
        y = y.to(tl.float32)
        positive = tl.where(a < 0, mark, y > 0)
        gx = tl.where(positive, g, a * g)
        tl.store(grad_x + at, gx.to(grad_x.dtype.element_ty), mask=inside)
        # Summed over rows after the loop: inside it each tile would wait for all threads.
        of_bias += gx
        of_slope += tl.where(positive, 0.0, g * y)
        start += tl.num_programs(0) * ROWS
    place = sums + tl.program_id(0) * 2 * channels + column
    tl.store(place, tl.sum(of_bias, 0), mask=valid)
    # A slope of 0 is fixed, and nobody asks for its gradient.
    tl.store(place + channels, tl.sum(of_slope, 0) / tl.where(slopes == 0, 1.0, slopes), mask=valid)
