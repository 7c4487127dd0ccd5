"""The fused rectifier (rectifier.py) and SPP (spp.py) as Triton programs.

The rectifier's are over (rows, channels) numbers in memory: a program has a tile of ROWS x COLUMNS
numbers at a time, COLUMNS of the channels. SPP's are over (images, height, width, channels): a
program has COLUMNS channels of a bin, or, backward, of a cell, so that no two write to one place.
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


@triton.jit
def _edges(i, size, side):
    """A bin's, of `side` of them: spp.py's bin_edges."""
    return i * size // side, ((i + 1) * size + side - 1) // side


@triton.jit
def pool(
    x, levels, out, most, tied, channels, height, width, features, bins, COLUMNS: tl.constexpr
):  # fmt: skip
    """A bin's maximum, to `out` in SPP's order and to `most` (images, bins, channels); `tied`: so
    many of the bin's columns have it."""
    image = (tl.program_id(0) // bins).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    number = tl.program_id(0) % bins  # of all levels' bins; then of its own level's
    side, level, before = tl.load(levels), 0, 0
    while number >= side * side:
        number -= side * side
        before += side * side
        level += 1
        side = tl.load(levels + level)
    top, bottom = _edges(number // side, height, side)
    left, right = _edges(number % side, width, side)
    maximum = tl.full([COLUMNS], float("-inf"), tl.float32)
    columns = tl.zeros([COLUMNS], tl.int32)
    w = left
    while w < right:
        best = tl.full([COLUMNS], float("-inf"), tl.float32)
        h = top
        while h < bottom:
            at = ((image * height + h) * width + w) * channels + column
            value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
            best = tl.where((value > best) | (value != value), value, best)  # NaN wins, and stays
            h += 1
        better = (best > maximum) | (best != best)
        columns = tl.where(better, 1, columns + (best == maximum).to(tl.int32))
        maximum = tl.where(better, best, maximum)
        w += 1
    to = image * features + before * channels + column * side * side + number
    tl.store(out + to, maximum.to(out.dtype.element_ty), mask=valid)
    place = tl.program_id(0).to(tl.int64) * channels + column
    tl.store(most + place, maximum.to(most.dtype.element_ty), mask=valid)
    tl.store(tied + place, columns.to(tied.dtype.element_ty), mask=valid)


@triton.jit
def pool_backward(
    grad, x, most, tied, levels, grad_x, channels, height, width, features, bins, count,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a cell gets of the bins that it lies in: the columns that tie for a bin's maximum share
    its gradient, and a column's cells that do share the column's part."""
    cells = height * width
    image = (tl.program_id(0) // cells).to(tl.int64)
    h, w = tl.program_id(0) % cells // width, tl.program_id(0) % width
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    at = tl.program_id(0).to(tl.int64) * channels + column
    value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    level, before = 0, 0
    while level < count:
        side = tl.load(levels + level)
        i = h * side // height
        while i * height < (h + 1) * side:  # the first row of bin i is not below h
            top, bottom = _edges(i, height, side)
            j = w * side // width
            while j * width < (w + 1) * side:
                number = i * side + j
                place = (image * bins + before + number) * channels + column
                maximum = tl.load(most + place, mask=valid, other=0.0).to(tl.float32)
                share = tl.load(tied + place, mask=valid, other=1).to(tl.float32)
                of = image * features + before * channels + column * side * side + number
                given = tl.load(grad + of, mask=valid, other=0.0).to(tl.float32)
                equal = tl.zeros([COLUMNS], tl.float32)
                row = top
                while row < bottom:
                    other = ((image * height + row) * width + w) * channels + column
                    beside = tl.load(x + other, mask=valid, other=0.0).to(tl.float32)
                    equal += (beside == maximum).to(tl.float32)
                    row += 1
                of_cell = given / share / tl.maximum(equal, 1.0)
                total += tl.where(value == maximum, of_cell, 0.0)
                j += 1
            i += 1
        before += side * side
        level += 1
    tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=valid)
