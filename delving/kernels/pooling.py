"""SPP (spp.py), the folding of images (stem.py) and the input (data/input.py) as Triton programs.

Tensors are (images, height, width, channels). A program of SPP has COLUMNS channels: of one bin;
backward, of one cell, so that no two write to one place; for windows, of one level's bins in one
window.
"""

import triton
import triton.language as tl


@triton.jit
def _edges(i, size, side):
    """Start and end of bin i of `side` bins along `size` cells: spp.py's bin_edges."""
    return i * size // side, ((i + 1) * size + side - 1) // side


@triton.jit
def pool(
    x, levels, out, most, tied, channels, height, width, features, bins, COLUMNS: tl.constexpr
):  # fmt: skip
    """Writes a bin's maximum to `out`, in SPP's order, and to `most` (images, bins, channels); to
    `tied`, how many of the bin's columns have it."""
    image = (tl.program_id(0) // bins).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    number = tl.program_id(0) % bins  # among all levels' bins; then its own level's
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
    """A cell's gradient from the bins that it lies in: columns that tie for a bin's maximum share
    the bin's gradient, and cells of a column that tie share the column's part."""
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
        while i * height < (h + 1) * side:  # bin i begins at row h or before
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


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def pool_windows(
    x, out, channels, height, width, rows, columns, features, before, size,
    SIDE: tl.constexpr, EXTENT: tl.constexpr, BINS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The maxima of one level's SIDE x SIDE bins, each of at most EXTENT cells a side, in a window
    of size x size; an image has (rows, columns) windows, one cell apart. They go to `out`, in SPP's
    order, after the `before` bins of other levels."""
    window = tl.program_id(0)
    image = (window // columns // rows).to(tl.int64)
    corner = (image * height + window // columns % rows) * width + window % columns
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    number = tl.arange(0, BINS)
    top, bottom = _edges(number // SIDE, size, SIDE)
    left, right = _edges(number % SIDE, size, SIDE)
    there = (number < SIDE * SIDE)[:, None] & (column < channels)[None, :]
    maximum = tl.full([BINS, COLUMNS], float("-inf"), tl.float32)
    for i in range(EXTENT):
        for j in range(EXTENT):
            at = (corner + (top + i) * width + left + j)[:, None] * channels + column[None, :]
            inside = there & ((top + i < bottom) & (left + j < right))[:, None]
            value = tl.load(x + at, mask=inside, other=float("-inf")).to(tl.float32)
            maximum = tl.where((value > maximum) | (value != value), value, maximum)
    to = window.to(tl.int64) * features + before * channels
    place = to + column[None, :] * (SIDE * SIDE) + number[:, None]
    tl.store(out + place, maximum.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["count", "height", "width", "rows", "columns"])
def fold(x, out, count, height, width, rows, columns, ROWS: tl.constexpr):
    """stem.py's blocks of 2 x 2 cells of three channels. An image has (rows, columns) of them; the
    first two each way lie outside it."""
    block = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, 16)
    cell = channel // 3
    h = (block // columns % rows * 2 - 4)[:, None] + (cell // 2)[None, :]
    w = (block % columns * 2 - 4)[:, None] + (cell % 2)[None, :]
    image = (block // columns // rows).to(tl.int64)[:, None]
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (channel < 12)[None, :]
    inside = inside & (block < count)[:, None]
    at = ((image * height + h) * width + w) * 3 + (channel % 3)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    to = block.to(tl.int64)[:, None] * 16 + channel[None, :]
    tl.store(out + to, value.to(out.dtype.element_ty), mask=(block < count)[:, None])


@triton.jit(do_not_specialize=["count", "cells"])
def prepare(
    pixels, shift, mean, std, out, count, cells, SHIFTED: tl.constexpr, NUMBERS: tl.constexpr
):  # fmt: skip
    """data/input.py's Input, of `count` pixels of three numbers as they lie, `cells` per image."""
    at = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < count * 3
    channel, cell = at % 3, at // 3
    x = tl.load(pixels + at, mask=inside, other=0).to(tl.float32)
    if SHIFTED:
        x += tl.load(shift + cell // cells * 3 + channel, mask=inside, other=0.0)
    x -= tl.load(mean + channel * cells + cell % cells, mask=inside, other=0.0)
    tl.store(out + at, tl.div_rn(x, tl.load(std)), mask=inside)
