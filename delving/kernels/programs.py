"""The fused rectifier (fused.py) as Triton programs, alone and with max pooling after it.

Numbers lie in memory as (rows, channels); a program has a tile of ROWS x COLUMNS of them at a time,
COLUMNS of the channels.
"""

import triton
import triton.language as tl

REACH = tl.constexpr(2.0**-60)  # fused.py's


@triton.jit
def _slopes(slope, column, valid, SHARED: tl.constexpr, LEARNED: tl.constexpr):
    a = tl.load(slope + column * (1 - SHARED), mask=valid, other=1.0)
    if LEARNED:
        near = tl.where(a.to(tl.int32, bitcast=True) < 0, -REACH, REACH)  # -0.0 too
        a = tl.where(tl.abs(a) < REACH, near, a)
    return a


@triton.jit
def _nearest(f, z, bits):
    """f's bits, rounded to the nearest number whose last bit tells z's side, that bit still unset;
    in fp32 unrounded."""
    if bits.dtype == tl.int32:
        return bits
    start = f.to(tl.int32, bitcast=True) + tl.where(z > 0, 0, 0x10000)
    nearest = (start - 1 + ((start >> 17) & 1)) >> 16  # ties go to a last bit but one of 1
    return tl.where(f == f, nearest.to(bits.dtype), bits)


@triton.jit
def _rectified(z, a, number: tl.constexpr, BITS: tl.constexpr, MARKED: tl.constexpr):
    """f(z) as `number`; if MARKED, its last bit tells z's side wherever the slope is negative."""
    f = tl.where(z > 0, z, a * z)
    if not MARKED:
        return f.to(number)
    bits = f.to(number).to(BITS, bitcast=True)
    marked = (_nearest(f, z, bits) & -2) | (z > 0).to(BITS)
    return tl.where(a < 0, marked, bits).to(number, bitcast=True)


@triton.jit
def _is_positive(y, a, BITS: tl.constexpr):
    """Whether what was rectified to y was above 0."""
    mark = (y.to(BITS, bitcast=True) & 1) != 0
    return tl.where(a < 0, mark, y.to(tl.float32) > 0)


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
    # Marking takes twice as long as all the rest, and few tiles need it.
    if tl.min(a) < 0:
        tl.store(out + at, _rectified(z, a, out.dtype.element_ty, BITS, True), mask=inside)
    else:
        tl.store(out + at, _rectified(z, a, out.dtype.element_ty, BITS, False), mask=inside)


@triton.jit
def rectify_backward(
    grad, out, slope, grad_x, sums, rows, channels,
    SHARED: tl.constexpr, LEARNED: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes `grad_x`; to `sums` (programs, 2, channels), what each program adds to the gradients
    of bias and slope."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    slopes = _slopes(slope, column, valid, SHARED, LEARNED)
    a = slopes[None, :]
    of_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * ROWS
    while start < rows:  # no range(): Triton 3.6's interpreter makes none of tensors with numpy 2.4
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        at = row[:, None] * channels + column[None, :]
        inside = (row < rows)[:, None] & valid[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(out + at, mask=inside, other=0.0)
        positive = _is_positive(y, a, BITS)
        gx = tl.where(positive, g, a * g)
        tl.store(grad_x + at, gx.to(grad_x.dtype.element_ty), mask=inside)
        # Summed over rows after the loop: inside it each tile would wait for all threads.
        of_bias += gx
        of_slope += tl.where(positive, 0.0, g * y.to(tl.float32))
        start += tl.num_programs(0) * ROWS
    _store_sums(sums, of_bias, of_slope, slopes, column, valid, channels)


@triton.jit
def _store_sums(sums, of_bias, of_slope, slopes, column, valid, channels):
    place = sums + tl.program_id(0) * 2 * channels + column
    tl.store(place, tl.sum(of_bias, 0), mask=valid)
    # A slope of 0 is fixed, and its gradient is never used.
    tl.store(place + channels, tl.sum(of_slope, 0) / tl.where(slopes == 0, 1.0, slopes), mask=valid)


@triton.jit
def _corner(row, height, width, SIDE: tl.constexpr):
    """For window number `row` of all images: whether it is the last one down and across, and the
    number of its first cell among all images' cells."""
    down, across = height // SIDE, width // SIDE
    i, j = row // across % down, row % across
    cell = (row // across // down * height + i * SIDE).to(tl.int64) * width + j * SIDE
    return i == down - 1, j == across - 1, cell


@triton.jit(do_not_specialize=["rows", "height", "width"])
def rectify_pool(
    x, bias, slope, out, chosen, rows, channels, height, width,
    BIASED: tl.constexpr, SHARED: tl.constexpr, LEARNED: tl.constexpr, BITS: tl.constexpr,
    SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes the maximum after rectifying of each SIDE x SIDE window, a row of `out`; to `chosen`,
    which cell has it, the first if several do."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    a = _slopes(slope, column, valid, SHARED, LEARNED)[None, :]
    b = tl.zeros([1, COLUMNS], tl.float32)
    if BIASED:
        b = tl.load(bias + column, mask=valid, other=0.0)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & valid[None, :]
    cell = _corner(row, height, width, SIDE)[2]
    at = cell[:, None] * channels + column[None, :]
    to = row.to(tl.int64)[:, None] * channels + column[None, :]
    number: tl.constexpr = out.dtype.element_ty
    if tl.min(a) < 0:  # as in rectify
        best, which = _best(
            x + at, b, a, inside, channels, width, number, BITS, True, SIDE, ROWS, COLUMNS
        )
        tl.store(out + to, best, mask=inside)
        tl.store(chosen + to, which, mask=inside)
    else:
        best, which = _best(
            x + at, b, a, inside, channels, width, number, BITS, False, SIDE, ROWS, COLUMNS
        )
        tl.store(out + to, best, mask=inside)
        tl.store(chosen + to, which, mask=inside)


@triton.jit
def _best(
    x, b, a, inside, channels, width, number: tl.constexpr, BITS: tl.constexpr,
    MARKED: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """(maxima, which cells have them) of the windows whose first cells x points to."""
    best = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    which = tl.zeros([ROWS, COLUMNS], tl.int32)
    for i in tl.static_range(SIDE):
        for j in tl.static_range(SIDE):
            at = x + (i * width + j) * channels
            z = tl.load(at, mask=inside, other=0.0).to(tl.float32) + b
            y = _rectified(z, a, number, BITS, MARKED).to(tl.float32)
            better = (y > best) | (y != y)  # NaN wins, and stays
            best = tl.where(better, y, best)
            which = tl.where(better, i * SIDE + j, which)
    return best.to(number), which.to(tl.uint8)


@triton.jit(do_not_specialize=["rows", "height", "width"])
def rectify_pool_backward(
    grad, out, chosen, slope, grad_x, sums, rows, channels, height, width,
    SHARED: tl.constexpr, LEARNED: tl.constexpr, BITS: tl.constexpr, SIDE: tl.constexpr,
    BELOW: tl.constexpr, BESIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes `grad_x` of the cells of all windows, and 0 for the BELOW rows and BESIDE columns that
    follow the last windows; `sums` as in rectify_backward."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < channels
    slopes = _slopes(slope, column, valid, SHARED, LEARNED)
    a = slopes[None, :]
    of_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * ROWS
    while start < rows:
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & valid[None, :]
        lowest, rightmost, cell = _corner(row, height, width, SIDE)
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(out + at, mask=inside, other=0.0)
        which = tl.load(chosen + at, mask=inside, other=0).to(tl.int32)
        positive = _is_positive(y, a, BITS)
        gx = tl.where(positive, g, a * g)
        of_bias += gx
        of_slope += tl.where(positive, 0.0, g * y.to(tl.float32))
        for i in tl.static_range(SIDE + BELOW):
            for j in tl.static_range(SIDE + BESIDE):
                own = inside
                if i >= SIDE:
                    own = own & lowest[:, None]
                if j >= SIDE:
                    own = own & rightmost[:, None]
                given = tl.zeros([ROWS, COLUMNS], tl.float32)
                if i < SIDE and j < SIDE:
                    given = tl.where(which == i * SIDE + j, gx, 0.0)
                to = (cell + i * width + j)[:, None] * channels + column[None, :]
                tl.store(grad_x + to, given.to(grad_x.dtype.element_ty), mask=own)
        start += tl.num_programs(0) * ROWS
    _store_sums(sums, of_bias, of_slope, slopes, column, valid, channels)
