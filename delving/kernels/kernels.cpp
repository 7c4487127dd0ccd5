// Vectorised kernels for CPUs: the fused rectifier (Eq. 1 to 3), SPP of the training map and of all
// windows of a larger one.
//
// native.py has them compiled for the machine they run on. Sums are made in an order that depends
// on the sizes alone, never on the number of threads. The exported functions return 1 if no memory
// is left, else 0.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int CHUNKS = 32;     // pieces of work at most, each with sums of its own
constexpr long BLOCK = 32;     // rows summed in fp32 before they are added up in fp64
constexpr long SMALL = 16384;  // numbers up to which threads cost more than they gain
constexpr float REACH = 0x1p-60f;  // fused.py's

inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
inline float from_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }

struct Float {  // fp32 in memory
    using Stored = float;
    static float load(float x) { return x; }
    static uint32_t raw(float x) { return bits_of(x); }
    static uint32_t bits(float x) { return bits_of(x); }
    static uint32_t marked(float x, uint32_t falls, uint32_t above) {
        return (bits_of(x) & ~(falls & 1)) | (falls & above & 1);
    }
    static float store(uint32_t b) { return from_bits(b); }
};

struct BFloat16 {
    using Stored = uint16_t;
    static float load(uint16_t x) { return from_bits(uint32_t(x) << 16); }
    static uint32_t raw(uint16_t x) { return x; }
    // Rounds to the nearest, ties to even; where a slope falls, to the nearest whose last bit tells
    // the side, ties to a last bit but one of 1. NaN stays NaN.
    static uint32_t marked(float x, uint32_t falls, uint32_t above) {
        uint32_t b = bits_of(x), from = b + (falls & ~above & 0x10000), last = 16 + (falls & 1);
        uint32_t nearest = (from + (~falls & 0x8000) - 1 + ((from >> last) & 1)) >> 16;
        uint32_t y = (b & 0x7fffffff) > 0x7f800000 ? (b >> 16) | 0x40 : nearest;
        return (y & ~(falls & 1)) | (falls & above & 1);
    }
    static uint32_t bits(float x) { return marked(x, 0, 0); }
    static uint16_t store(uint32_t b) { return uint16_t(b); }
};

long first(long rows, int chunk, int chunks = CHUNKS) { return rows * chunk / chunks; }

// Values repeated up to `period` numbers, so that vectors are full if channels are few.
std::vector<float> repeat(const float *values, long count, long period) {
    std::vector<float> all(period, 0.0f);
    for (long i = 0; values && i < period; i += count)
        std::copy(values, values + count, all.begin() + i);
    return all;
}

// The slopes that are computed with: a learned one is kept away from 0 (fused.py says why).
std::vector<float> reach(const float *slope, long slopes, long period, bool learned) {
    std::vector<float> all = repeat(slope, slopes, period);
    for (float &a : all)
        if (learned && std::fabs(a) < REACH) a = std::copysign(REACH, a);
    return all;
}

template <class T, bool FALLING, class S>
inline void rectify_row(const S *__restrict x, const float *__restrict a,
                        const float *__restrict b, S *__restrict out, long count) {
#pragma omp simd
    for (long i = 0; i < count; i++) {
        const float z = T::load(x[i]) + b[i];
        // Masks of all ones or 0, which compilers vectorise.
        const uint32_t above = -uint32_t(z > 0), falls = FALLING ? -uint32_t(a[i] < 0) : 0;
        const float f = from_bits((bits_of(z) & above) | (bits_of(a[i] * z) & ~above));
        out[i] = T::store(T::marked(f, falls, above));
    }
}

template <class T, class S = typename T::Stored>
void rectify(const S *x, const float *bias, const float *slope, S *out, long slopes, long numbers,
             long channels, long period, bool learned) {
    const std::vector<float> factors = reach(slope, slopes, period, learned);
    const std::vector<float> biases = repeat(bias, channels, period);
    const float *a = factors.data(), *b = biases.data();
    const bool falling = std::any_of(a, a + period, [](float one) { return one < 0; });
    const auto rectify_row_of = falling ? rectify_row<T, true, S> : rectify_row<T, false, S>;
    const long rows = (numbers + period - 1) / period;
#pragma omp parallel for schedule(static) if (numbers > SMALL)
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        for (long row = first(rows, chunk); row < first(rows, chunk + 1); row++) {
            const long at = row * period;
            rectify_row_of(x + at, a, b, out + at, std::min(period, numbers - at));
        }
}

// One row's part of the gradients; the slopes' part is still multiplied by the slope.
template <class T, class S>
inline void backward_row(const S *__restrict grad, const S *__restrict out,
                         const float *__restrict a, S *__restrict grad_x, long count,
                         float *__restrict of_bias, float *__restrict of_slope) {
#pragma omp simd
    for (long i = 0; i < count; i++) {
        const float g = T::load(grad[i]), y = T::load(out[i]);
        // Masks of all ones or 0, which compilers vectorise to the full width.
        const int32_t odd = -int32_t(T::raw(out[i]) & 1), above = -int32_t(y > 0);
        const int32_t marked = -int32_t(a[i] < 0);
        const uint32_t positive = (odd & marked) | (above & ~marked);
        const float gx = from_bits((bits_of(g) & positive) | (bits_of(a[i] * g) & ~positive));
        grad_x[i] = T::store(T::bits(gx));
        of_bias[i] += gx;
        of_slope[i] += from_bits(bits_of(g * y) & ~positive);
    }
}

template <class T, class S = typename T::Stored>
void rectify_backward(const S *grad, const S *out, const float *slope, S *grad_x, float *grad_bias,
                      float *grad_slope, long slopes, long numbers, long channels, long period,
                      bool learned) {
    const std::vector<float> factors = reach(slope, slopes, period, learned);
    const float *a = factors.data();
    const long rows = (numbers + period - 1) / period;
    // Few rows, as an fc layer's, make few pieces: to add up more would take longer than the rows.
    const int chunks = int(std::clamp(rows / BLOCK, 1L, long(CHUNKS)));
    std::vector<float> sums(chunks * 2 * period);
    std::vector<double> totals(chunks * 2 * channels, 0.0);
#pragma omp parallel for schedule(static) if (numbers > SMALL)
    for (int chunk = 0; chunk < chunks; chunk++) {
        float *own = sums.data() + chunk * 2 * period;
        double *total = totals.data() + chunk * 2 * channels;
        const long end = first(rows, chunk + 1, chunks);
        for (long row = first(rows, chunk, chunks); row < end;) {
            std::fill(own, own + 2 * period, 0.0f);
            for (const long last = std::min(row + BLOCK, end); row < last; row++) {
                const long at = row * period;
                backward_row<T>(grad + at, out + at, a, grad_x + at,
                                std::min(period, numbers - at), own, own + period);
            }
            for (long i = 0; i < period; i += channels)
                for (long c = 0; c < channels; c++) {
                    total[c] += own[i + c];
                    total[channels + c] += own[period + i + c];
                }
        }
    }
    for (int chunk = 1; chunk < chunks; chunk++)
        for (long i = 0; i < 2 * channels; i++) totals[i] += totals[chunk * 2 * channels + i];
    for (long c = 0; c < channels; c++) {
        grad_bias[c] = float(totals[c]);
        grad_slope[c] = float(totals[channels + c] / a[c]);
    }
}

// SPP. An image's map is (height, width, channels); its features are, level by level, (channels,
// bins, bins). Bins are spp.py's: floor(i n / b) to ceil((i + 1) n / b).
long bin_start(long i, long size, long bins) { return i * size / bins; }
long bin_end(long i, long size, long bins) { return ((i + 1) * size + bins - 1) / bins; }

struct Map {
    long height, width, channels;
};

// The elementwise maximum of `count` vectors that lie `step` apart; NaN wins.
template <class T, class S>
inline void maxima(const S *__restrict from, long count, long step, long numbers,
                   float *__restrict to) {
    for (long k = 0; k < count; k++)
#pragma omp simd
        for (long i = 0; i < numbers; i++) {
            const float v = T::load(from[k * step + i]);
            to[i] = k == 0 || v > to[i] || v != v ? v : to[i];
        }
}

// The maximum of each column, left to right, over the rows top to bottom; then over the columns.
template <class T, class S>
void bin_maxima(const S *x, const Map &m, long top, long bottom, long left, long right,
                float *columns, float *bin) {
    const long numbers = (right - left) * m.channels;
    maxima<T>(x + (top * m.width + left) * m.channels, bottom - top, m.width * m.channels, numbers,
              columns);
    maxima<Float>(columns, right - left, m.channels, m.channels, bin);
}

template <class T, class S = typename T::Stored>
void spp(const S *x, S *out, long images, const Map &m, const long *levels, long count,
         long features) {
    // Each image has its own, made before the threads start: an error in one would not come back.
    const long own = (m.width + 1) * m.channels;
    std::vector<float> scratch(images * own);
#pragma omp parallel for schedule(static) if (images * m.height * m.width * m.channels > SMALL)
    for (long n = 0; n < images; n++) {
        float *bin = scratch.data() + n * own, *columns = bin + m.channels;
        const S *map = x + n * m.height * m.width * m.channels;
        S *to = out + n * features;
        for (long l = 0; l < count; l++) {
            const long bins = levels[l];
            for (long i = 0; i < bins; i++)
                for (long j = 0; j < bins; j++) {
                    bin_maxima<T>(map, m, bin_start(i, m.height, bins), bin_end(i, m.height, bins),
                                  bin_start(j, m.width, bins), bin_end(j, m.width, bins),
                                  columns, bin);
                    for (long c = 0; c < m.channels; c++)
                        to[(c * bins + i) * bins + j] = T::store(T::bits(bin[c]));
                }
            to += m.channels * bins * bins;
        }
    }
}

// SPP of every size x size window, for dense testing: out is (images, rows, columns, features), a
// window's features in spp's order. The maxima over a bin's rows serve all windows that lie beside
// one another.
template <class T, class S = typename T::Stored>
void spp_windows(const S *x, S *out, long images, const Map &m, const long *levels, long count,
                 long features, long size) {
    const long rows = m.height - size + 1, columns = m.width - size + 1;
    const long strip = m.width * m.channels, most = *std::max_element(levels, levels + count);
    const long own = (most + 1) * strip, cells = most * most * m.channels;
    std::vector<float> scratch(CHUNKS * own);
    std::vector<S> windows(CHUNKS * cells);
#pragma omp parallel for schedule(static) if (images * rows * columns * features > SMALL)
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        float *strips = scratch.data() + chunk * own, *bin = strips + most * strip;
        S *window = windows.data() + chunk * cells;
        for (long row = first(images * rows, chunk); row < first(images * rows, chunk + 1); row++) {
            const S *map = x + (row / rows * m.height + row % rows) * strip;
            S *to = out + row * columns * features;
            for (long l = 0; l < count; l++) {
                const long bins = levels[l];
                for (long i = 0; i < bins; i++) {
                    const long top = bin_start(i, size, bins);
                    maxima<T>(map + top * strip, bin_end(i, size, bins) - top, strip, strip,
                              strips + i * strip);
                }
                for (long w = 0; w < columns; w++) {
                    for (long k = 0; k < bins * bins; k++) {
                        const long left = bin_start(k % bins, size, bins);
                        maxima<Float>(strips + k / bins * strip + (w + left) * m.channels,
                                      bin_end(k % bins, size, bins) - left, m.channels, m.channels,
                                      bin);
#pragma omp simd
                        for (long c = 0; c < m.channels; c++)
                            window[k * m.channels + c] = T::store(T::bits(bin[c]));
                    }
                    for (long c = 0; c < m.channels; c++)
                        for (long k = 0; k < bins * bins; k++)
                            to[w * features + c * bins * bins + k] = window[k * m.channels + c];
                }
                to += m.channels * bins * bins;
            }
        }
    }
}

// Cells that tie share a bin's gradient: first its columns, then each column's cells. Conditions
// are not nested, which compilers would not vectorise: a cell that is its bin's maximum is its
// column's too.
template <class T, class S>
void bin_backward(const S *__restrict x, const float *__restrict grad, const Map &m, long top,
                  long bottom, long left, long right, float *__restrict columns,
                  float *__restrict bin, float *__restrict shares, float *__restrict grad_x) {
    if (bottom - top == 1 && right - left == 1) {  // one cell, as most bins are where they crowd
        const long at = (top * m.width + left) * m.channels;
#pragma omp simd
        for (long c = 0; c < m.channels; c++) {
            const float v = T::load(x[at + c]);
            grad_x[at + c] += v == v ? grad[c] : 0.0f;
        }
        return;
    }
    bin_maxima<T>(x, m, top, bottom, left, right, columns, bin);
    float *tied = shares + m.channels;
    std::fill(tied, tied + m.channels, 0.0f);
    for (long w = left; w < right; w++)
#pragma omp simd
        for (long c = 0; c < m.channels; c++)
            tied[c] += columns[(w - left) * m.channels + c] == bin[c] ? 1.0f : 0.0f;
#pragma omp simd
    for (long c = 0; c < m.channels; c++) shares[c] = grad[c] / tied[c];
    for (long w = left; w < right; w++) {
        const float *column = columns + (w - left) * m.channels;
        std::fill(tied, tied + m.channels, 0.0f);
        for (long h = top; h < bottom; h++)
#pragma omp simd
            for (long c = 0; c < m.channels; c++)
                tied[c] += T::load(x[(h * m.width + w) * m.channels + c]) == column[c] ? 1.0f : 0.0f;
#pragma omp simd
        for (long c = 0; c < m.channels; c++) tied[c] = shares[c] / tied[c];
        for (long h = top; h < bottom; h++) {
            const long at = (h * m.width + w) * m.channels;
#pragma omp simd
            for (long c = 0; c < m.channels; c++)
                grad_x[at + c] += T::load(x[at + c]) == bin[c] ? tied[c] : 0.0f;
        }
    }
}

template <class T, class S = typename T::Stored>
void spp_backward(const S *grad, const S *x, S *grad_x, long images, const Map &m,
                  const long *levels, long count, long features) {
    const long size = m.height * m.width * m.channels, own = size + (m.width + 4) * m.channels;
    std::vector<float> scratch(images * own, 0.0f);
#pragma omp parallel for schedule(static) if (images * size > SMALL)
    for (long n = 0; n < images; n++) {
        float *total = scratch.data() + n * own, *bin = total + size, *shares = bin + m.channels;
        float *of_bin = shares + 2 * m.channels, *columns = of_bin + m.channels;
        const S *from = grad + n * features;
        for (long l = 0; l < count; l++) {
            const long bins = levels[l];
            for (long i = 0; i < bins; i++)
                for (long j = 0; j < bins; j++) {
                    for (long c = 0; c < m.channels; c++)
                        of_bin[c] = T::load(from[(c * bins + i) * bins + j]);
                    bin_backward<T>(x + n * size, of_bin, m, bin_start(i, m.height, bins),
                                    bin_end(i, m.height, bins), bin_start(j, m.width, bins),
                                    bin_end(j, m.width, bins), columns, bin, shares, total);
                }
            from += m.channels * bins * bins;
        }
        for (long i = 0; i < size; i++) grad_x[n * size + i] = T::store(T::bits(total[i]));
    }
}

template <class F>
int tried(F work) {
    try {
        work();
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

}  // namespace

#define EXPORT(NAME, T)                                                                            \
    extern "C" int rectify_##NAME(const T::Stored *x, const float *bias, const float *slope,       \
                                  T::Stored *out, long slopes, long numbers, long channels,        \
                                  long period, int learned) {                                      \
        return tried([=] {                                                                         \
            rectify<T>(x, bias, slope, out, slopes, numbers, channels, period, learned);           \
        });                                                                                        \
    }                                                                                              \
    extern "C" int rectify_backward_##NAME(const T::Stored *grad, const T::Stored *out,            \
                                           const float *slope, T::Stored *grad_x,                  \
                                           float *grad_bias, float *grad_slope, long slopes,       \
                                           long numbers, long channels, long period,               \
                                           int learned) {                                          \
        return tried([=] {                                                                         \
            rectify_backward<T>(grad, out, slope, grad_x, grad_bias, grad_slope, slopes, numbers,  \
                                channels, period, learned);                                        \
        });                                                                                        \
    }                                                                                              \
    extern "C" int spp_##NAME(const T::Stored *x, T::Stored *out, long images, long height,        \
                              long width, long channels, const long *levels, long count,           \
                              long features) {                                                     \
        return tried([=] {                                                                         \
            spp<T>(x, out, images, {height, width, channels}, levels, count, features);            \
        });                                                                                        \
    }                                                                                              \
    extern "C" int spp_windows_##NAME(const T::Stored *x, T::Stored *out, long images,             \
                                      long height, long width, long channels, const long *levels,  \
                                      long count, long features, long size) {                      \
        return tried([=] {                                                                         \
            spp_windows<T>(x, out, images, {height, width, channels}, levels, count, features,     \
                           size);                                                                  \
        });                                                                                        \
    }                                                                                              \
    extern "C" int spp_backward_##NAME(const T::Stored *grad, const T::Stored *x,                  \
                                       T::Stored *grad_x, long images, long height, long width,    \
                                       long channels, const long *levels, long count,              \
                                       long features) {                                            \
        return tried([=] {                                                                         \
            spp_backward<T>(grad, x, grad_x, images, {height, width, channels}, levels, count,     \
                            features);                                                             \
        });                                                                                        \
    }

EXPORT(float32, Float)
EXPORT(bfloat16, BFloat16)
