// Cuts a view from a JPEG file: libjpeg-turbo decodes no more of it than the view needs, then that
// is resized. Every pixel is the one that Pillow gives from the whole image (augment.py), since the
// integers computed with are the same: weights of 22 bits, and grey levels between the passes over
// columns and rows.
//
// A file whose pixels cannot be promised is refused: every warning of the decoder is a refusal. A
// new file is read to its end, even if the view ends before: whether a damaged one gives a view
// must not depend on where the view lies.

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer cuts regions rightly"
#endif

namespace {

constexpr int BITS = 22;     // of a weight
// Columns decoded beside a region: chroma is smoothed with its neighbours, a block of 16 at most,
// and a decoder that begins at a block knows none to its left.
constexpr long MARGIN = 32;
constexpr int PIXEL = 4;     // bytes: red, green, blue and an unused one, which fills a vector

typedef int32_t Sum __attribute__((vector_size(16)));

// The filter along a side: each of the view's pixels is a weighted sum of some of the image's.
struct Side {
    std::vector<int> first, count;
    std::vector<int32_t> weights;  // `taps` for each pixel
    int taps;
};

// The antialiased bilinear filter: a tent, wider if the image shrinks. `from` and `to` are floats,
// as Pillow's are.
Side tent(int size, float from, float to, int pixels) {
    const double scale = double(to - from) / pixels, wide = std::max(scale, 1.0);
    Side side{std::vector<int>(pixels), std::vector<int>(pixels), {}, int(std::ceil(wide)) * 2 + 1};
    side.weights.assign(size_t(pixels) * side.taps, 0);
    std::vector<double> shares(side.taps);
    for (int i = 0; i < pixels; i++) {
        const double center = from + (i + 0.5) * scale;
        const int begin = std::max(0, int(center - wide + 0.5));
        const int end = std::min(size, int(center + wide + 0.5));
        double total = 0;
        for (int j = begin; j < end; j++) {
            const double away = std::fabs((j - center + 0.5) * (1.0 / wide));
            total += shares[j - begin] = away < 1 ? 1 - away : 0;
        }
        for (int j = begin; j < end; j++)
            side.weights[size_t(i) * side.taps + j - begin] =
                int32_t(0.5 + (total == 0 ? shares[j - begin] : shares[j - begin] / total) *
                                  (1 << BITS));
        side.first[i] = begin;
        side.count[i] = end - begin;
    }
    return side;
}

inline uint8_t level(int32_t sum) { return uint8_t(std::clamp(sum >> BITS, 0, 255)); }

void resample_row(const uint8_t *row, const Side &across, uint8_t *to) {
    const int pixels = int(across.first.size());
    for (int i = 0; i < pixels; i++) {
        const uint8_t *from = row + across.first[i] * PIXEL;
        const int32_t *weights = across.weights.data() + size_t(i) * across.taps;
        Sum sum = Sum{} + (1 << (BITS - 1));
        for (int k = 0; k < across.count[i]; k++, from += PIXEL)
            sum += Sum{from[0], from[1], from[2], from[3]} * weights[k];
        for (int c = 0; c < PIXEL; c++) to[i * PIXEL + c] = level(sum[c]);
    }
}

// Makes the view from rows that are `pixels` wide.
void resample_rows(const uint8_t *rows, const Side &down, int pixels, bool flip, uint8_t *out) {
    const int width = pixels * PIXEL;
    std::vector<int32_t> sums(width);
    for (size_t y = 0; y < down.first.size(); y++, out += pixels * 3) {
        std::fill(sums.begin(), sums.end(), 1 << (BITS - 1));
        for (int k = 0; k < down.count[y]; k++) {
            const uint8_t *row = rows + (down.first[y] + k) * width;
            const int32_t weight = down.weights[y * down.taps + k];
            for (int i = 0; i < width; i++) sums[i] += row[i] * weight;
        }
        for (int i = 0; i < pixels; i++)
            for (int c = 0; c < 3; c++)
                out[(flip ? pixels - 1 - i : i) * 3 + c] = level(sums[i * PIXEL + c]);
    }
}

// Whether all versions of the decoder give the same pixels. They differ in how they fill in what a
// progressive file may lack, and in chroma that is halved otherwise than across or both ways.
bool agreed(const jpeg_decompress_struct &codec) {
    const jpeg_component_info *parts = codec.comp_info;
    if (codec.progressive_mode) return false;
    if (codec.num_components == 1) return true;
    if (codec.num_components != 3 || parts[0].v_samp_factor > parts[0].h_samp_factor) return false;
    if (parts[0].h_samp_factor > 2) return false;
    for (int i = 1; i < 3; i++)
        if (parts[i].h_samp_factor != 1 || parts[i].v_samp_factor != 1) return false;
    return true;
}

struct Errors {
    jpeg_error_mgr base;  // first, since libjpeg passes on its address
    jmp_buf out;
};

void leave(j_common_ptr codec) { longjmp(reinterpret_cast<Errors *>(codec->err)->out, 1); }
void say_nothing(j_common_ptr) {}

struct Region {
    long left, top, right, bottom;
};

// Nothing in here may have a destructor: longjmp would skip it. `row` has room for the image's
// width; `done` is called with each row of the region.
template <class Done>
bool decode(const uint8_t *data, size_t size, long width, long height, const Region &region,
            bool to_end, uint8_t *row, Done &done) {
    jpeg_decompress_struct codec;
    Errors errors;
    codec.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave;
    errors.base.output_message = say_nothing;
    if (setjmp(errors.out)) {
        jpeg_destroy_decompress(&codec);
        return false;
    }
    jpeg_create_decompress(&codec);
    jpeg_mem_src(&codec, const_cast<uint8_t *>(data), size);
    jpeg_read_header(&codec, TRUE);
    bool good = false;
    if (long(codec.image_width) == width && long(codec.image_height) == height && agreed(codec)) {
        codec.out_color_space = JCS_EXT_RGBX;
        jpeg_start_decompress(&codec);
        JDIMENSION from = JDIMENSION(std::max(0L, region.left - MARGIN));
        JDIMENSION columns = JDIMENSION(std::min(width, region.right + MARGIN)) - from;
        jpeg_crop_scanline(&codec, &from, &columns);  // moves `from` to where a block begins
        if (region.top > 0) jpeg_skip_scanlines(&codec, JDIMENSION(region.top));
        for (long y = region.top; y < region.bottom; y++) {
            jpeg_read_scanlines(&codec, &row, 1);
            done(row + (region.left - from) * PIXEL, y - region.top);
        }
        if (to_end && region.bottom < height) {  // to skip the last row too would stop at once
            jpeg_skip_scanlines(&codec, JDIMENSION(height - 1 - region.bottom));
            jpeg_read_scanlines(&codec, &row, 1);
        }
        if (to_end) jpeg_finish_decompress(&codec);
        good = errors.base.num_warnings == 0;
    }
    jpeg_destroy_decompress(&codec);
    return good;
}

}  // namespace

// Writes a view to out (pixels, pixels, 3). `sides` are left, top, right and bottom of the region
// that it needs, `box` those of the view itself, in pixels of the region. `to_end`: whether the
// file is new. Returns 0, or 1 if the file is refused or memory is short.
extern "C" int jpeg_view(const uint8_t *data, size_t size, long width, long height,
                         const long *sides, const float *box, int pixels, int flip, int to_end,
                         uint8_t *out) {
    const Region region{sides[0], sides[1], sides[2], sides[3]};
    try {
        const Side across = tent(int(region.right - region.left), box[0], box[2], pixels);
        const Side down = tent(int(region.bottom - region.top), box[1], box[3], pixels);
        std::vector<uint8_t> row(size_t(width) * PIXEL);
        std::vector<uint8_t> rows(size_t(region.bottom - region.top) * pixels * PIXEL);
        auto done = [&](const uint8_t *found, long y) {
            resample_row(found, across, rows.data() + y * pixels * PIXEL);
        };
        if (!decode(data, size, width, height, region, to_end, row.data(), done)) return 1;
        resample_rows(rows.data(), down, pixels, flip, out);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
