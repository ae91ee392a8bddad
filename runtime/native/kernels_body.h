/* The kernels, on the vectors of a simd_*.h. Included once per instruction set. */
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK (16 * LANES) /* channels in a vector of bytes */

/* Sums are variables of their own, not arrays: compilers keep arrays of vectors in memory. EACH(F) is F for each pixel of
 * a tile, NARROW_EACH(F) for each of a tile of 16 channels, VECTORS(F, i) for each vector of 16 sums. */
#define ONCE(F) F(0)
#define EACH_2(F) F(0) F(1)
#define EACH_3(F) EACH_2(F) F(2)
#define EACH_4(F) EACH_3(F) F(3)
#define EACH_6(F) EACH_4(F) F(4) F(5)
#define EACH_16(F) EACH_6(F) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH_NAMED(n) EACH_##n
#define EACH_OF(n) EACH_NAMED(n)
#define EACH(F) EACH_OF(PIXELS)(F)
#define NARROW_EACH(F) EACH_OF(NARROW_PIXELS)(F)
#if NARROW_VECTORS == 1
#define VECTORS(F, i) F(i, 0)
#elif NARROW_VECTORS == 2
#define VECTORS(F, i) F(i, 0) F(i, 1)
#else
#define VECTORS(F, i) F(i, 0) F(i, 1) F(i, 2) F(i, 3)
#endif

typedef struct {
    V a, b, c, d;
} V4;
typedef struct {
    F a, b, c, d;
} F4;

INLINE F4 f_load4(const float *p) {
    return (F4){F_LOAD(p), F_LOAD(p + 4 * LANES), F_LOAD(p + 8 * LANES), F_LOAD(p + 12 * LANES)};
}

/* ---- convolution ---- */

INLINE V limited16(V v) { return V_MAX16(V_MIN16(v, V_SET16(S16_LIMIT)), V_SET16(-S16_LIMIT)); }

/* Sums -> float values, with the residual's if there is one -> int32. */
INLINE V finished(V sum, F scale, F bias) { return V_ROUND(F_FMA(F_FROM(sum), scale, bias)); }

INLINE V finished_with(V sum, F scale, F bias, V residual, F residual_scale) {
    return V_ROUND(F_FMA(F_FROM(residual), residual_scale, F_FMA(F_FROM(sum), scale, bias)));
}

/* One pixel's sums of a block of channels -> its bytes (or s16). */
INLINE void finish(V4 sum, F4 scale, F4 bias, F residual_scale, const uint8_t *residual, uint8_t *to, int channels,
                   const int s16) {
    if (residual) {
        sum.a = finished_with(sum.a, scale.a, bias.a, v_widen(residual), residual_scale);
        sum.b = finished_with(sum.b, scale.b, bias.b, v_widen(residual + 4 * LANES), residual_scale);
        sum.c = finished_with(sum.c, scale.c, bias.c, v_widen(residual + 8 * LANES), residual_scale);
        sum.d = finished_with(sum.d, scale.d, bias.d, v_widen(residual + 12 * LANES), residual_scale);
    } else {
        sum.a = finished(sum.a, scale.a, bias.a);
        sum.b = finished(sum.b, scale.b, bias.b);
        sum.c = finished(sum.c, scale.c, bias.c);
        sum.d = finished(sum.d, scale.d, bias.d);
    }
    const V low = V_PACK32(sum.a, sum.b), high = V_PACK32(sum.c, sum.d);
    if (s16) { /* kept as packed; `upsample` puts the channels in order */
        V_STORE(to, limited16(low));
        V_STORE(to + BLOCK, limited16(high));
        return;
    }
    const V bytes = v_natural(V_PACK16(low, high));
    if (channels >= BLOCK)
        V_STORE(to, bytes);
    else
        v_store_part(to, bytes, channels);
}

#define SUMS(i)                                                                                       \
    V s##i##a = V_START(start), s##i##b = V_START(start + 4 * LANES), s##i##c = V_START(start + 8 * LANES), \
      s##i##d = V_START(start + 12 * LANES);
#define STEP(i)                                                       \
    {                                                                 \
        const uint8_t *q = p + (i) * in_step;                         \
        const V ba = v_broadcast(q + d0);                             \
        const V bb = distinct == 4 ? v_broadcast(q + d1) : ba;        \
        const V bc = distinct >= 2 ? v_broadcast(q + d2) : ba;        \
        const V bd = distinct == 4 ? v_broadcast(q + d3) : bc;        \
        s##i##a = V_DOT_FOUR(s##i##a, ba, wa);                        \
        s##i##b = V_DOT_FOUR(s##i##b, bb, wb);                        \
        s##i##c = V_DOT_FOUR(s##i##c, bc, wc);                        \
        s##i##d = V_DOT_FOUR(s##i##d, bd, wd);                        \
    }
#define FINISH(i)                                                                                                        \
    finish((V4){s##i##a, s##i##b, s##i##c, s##i##d}, scale, bias, residual_scale, with ? residual + (i) * out_step : NULL, \
           out + (i) * out_step, channels, s16);

#define CONV_TILE(NAME, EACH_PIXEL)                                                                                      \
    INLINE void NAME(const gs_conv *conv, int block, const uint8_t *in, ptrdiff_t in_step, uint8_t *out,                 \
                     ptrdiff_t out_step, const uint8_t *residual, const int distinct, const int s16, const int with) {   \
        const int32_t *offsets = conv->offsets, *deltas = conv->deltas + 4 * block;                                      \
        const int32_t *const end = offsets + conv->steps;                                                                \
        const int8_t *weights = conv->weights + (ptrdiff_t)block * conv->steps * 4 * BLOCK;                              \
        const ptrdiff_t d0 = deltas[0], d1 = deltas[1], d2 = deltas[2], d3 = deltas[3];                                  \
        const int32_t *const start = conv->start + block * BLOCK;                                                        \
        (void)start;                                                                                                     \
        EACH_PIXEL(SUMS)                                                                                                 \
        for (; offsets < end; offsets++, weights += 4 * BLOCK) {                                                         \
            const uint8_t *p = in + *offsets;                                                                            \
            const V wa = V_LOAD(weights), wb = V_LOAD(weights + BLOCK), wc = V_LOAD(weights + 2 * BLOCK),                \
                    wd = V_LOAD(weights + 3 * BLOCK);                                                                    \
            EACH_PIXEL(STEP)                                                                                             \
        }                                                                                                                \
        const F4 scale = f_load4(conv->scale + block * BLOCK), bias = f_load4(conv->bias + block * BLOCK);               \
        const F residual_scale = F_SET(conv->residual_scale);                                                            \
        const int channels = conv->cout - block * BLOCK;                                                                 \
        out += block * BLOCK * (s16 ? 2 : 1);                                                                            \
        residual += with ? block * BLOCK : 0;                                                                            \
        EACH_PIXEL(FINISH)                                                                                               \
    }
CONV_TILE(conv_tile, EACH)
CONV_TILE(conv_pixel, ONCE)

#define CONV_ROW(NAME, DISTINCT, S16, WITH)                                                                                  \
    static __attribute__((noinline)) void NAME(const gs_conv *conv, int block, const uint8_t *in, ptrdiff_t in_step,         \
                                               uint8_t *out, ptrdiff_t out_step, const uint8_t *residual, int32_t count) {   \
        int32_t x = 0;                                                                                                       \
        for (; x + PIXELS <= count; x += PIXELS)                                                                             \
            conv_tile(conv, block, in + x * in_step, in_step, out + x * out_step, out_step,                                  \
                      WITH ? residual + x * out_step : NULL, DISTINCT, S16, WITH);                                           \
        for (; x < count; x++)                                                                                               \
            conv_pixel(conv, block, in + x * in_step, in_step, out + x * out_step, out_step,                                 \
                       WITH ? residual + x * out_step : NULL, DISTINCT, S16, WITH);                                          \
    }
CONV_ROW(conv_1, 1, 0, 0)
CONV_ROW(conv_2, 2, 0, 0)
CONV_ROW(conv_4, 4, 0, 0)
CONV_ROW(conv_1_residual, 1, 0, 1)
CONV_ROW(conv_2_residual, 2, 0, 1)
CONV_ROW(conv_4_residual, 4, 0, 1)
CONV_ROW(conv_1_s16, 1, 1, 0)
CONV_ROW(conv_4_s16, 4, 1, 0)

#define NARROW_SUM(i, v) V s##i##_##v = V_START(start + v * 4 * LANES);
#define NARROW_SUMS(i) VECTORS(NARROW_SUM, i)
#define NARROW_DOT(i, v) s##i##_##v = V_DOT_FOUR(s##i##_##v, b, V_LOAD(weights + v * BLOCK));
#define NARROW_STEP(i)                              \
    {                                               \
        const V b = v_broadcast(p + (i) * in_step); \
        VECTORS(NARROW_DOT, i)                      \
    }
#define NARROW_VALUE(i, v)                                                                                               \
    all[v] = with ? finished_with(s##i##_##v, F_LOAD(scale + v * 4 * LANES), F_LOAD(bias + v * 4 * LANES),               \
                                  v_widen(residual + (i) * out_step + v * 4 * LANES), residual_scale)                    \
                  : finished(s##i##_##v, F_LOAD(scale + v * 4 * LANES), F_LOAD(bias + v * 4 * LANES));
#define NARROW_FINISH(i)                                                 \
    {                                                                    \
        V all[NARROW_VECTORS];                                           \
        VECTORS(NARROW_VALUE, i)                                         \
        uint8_t *to = out + (i) * out_step;                              \
        if (s16)                                                         \
            s16_store16((int16_t *)to, all);                             \
        else if (channels >= 16)                                         \
            Q_STORE(to, v_narrow16(all));                                \
        else {                                                           \
            uint8_t bytes[16];                                           \
            Q_STORE(bytes, v_narrow16(all));                             \
            memcpy(to, bytes, (size_t)channels);                         \
        }                                                                \
    }

/* Where a vector holds a pixel's 16 channels, four pixels side by side are finished like a block of channels. */
#if NARROW_VECTORS == 1
#define NARROW_QUADS 1
#define QUAD(i, j, k, l)                                                                                               \
    finish((V4){s##i##_0, s##j##_0, s##k##_0, s##l##_0}, scales, biases, residual_scale, with ? residual + 16 * (i) : NULL, \
           out + 16 * (i), BLOCK, 0);
#define NARROW_QUADS_FINISH                                            \
    const F s = F_LOAD(scale), b = F_LOAD(bias);                       \
    const F4 scales = {s, s, s, s}, biases = {b, b, b, b};             \
    QUAD(0, 1, 2, 3) QUAD(4, 5, 6, 7) QUAD(8, 9, 10, 11) QUAD(12, 13, 14, 15)
#else
#define NARROW_QUADS 0
#define NARROW_QUADS_FINISH
#endif

/* 16 output channels: sums of many pixels at once, the vectors of one pixel in the channels' order. */
#define NARROW_TILE(NAME, EACH_PIXEL, QUADS, QUADS_FINISH)                                                                                    \
    INLINE void NAME(const gs_conv *conv, int block, const uint8_t *in, ptrdiff_t in_step, uint8_t *out,                 \
                     ptrdiff_t out_step, const uint8_t *residual, const int s16, const int with) {                       \
        const int8_t *weights = conv->weights + (ptrdiff_t)block * conv->steps * 64;                                     \
        const float *scale = conv->scale + 16 * block, *bias = conv->bias + 16 * block;                                  \
        const F residual_scale = F_SET(conv->residual_scale);                                                            \
        const int channels = conv->cout - 16 * block;                                                                    \
        in += conv->deltas[4 * block];                                                                                   \
        out += 16 * block * (s16 ? 2 : 1);                                                                               \
        residual += with ? 16 * block : 0;                                                                               \
        const int32_t *const start = conv->start + 16 * block;                                                           \
        (void)start;                                                                                                     \
        EACH_PIXEL(NARROW_SUMS)                                                                                          \
        for (int k = 0; k < conv->steps; k++, weights += 64) {                                                           \
            const uint8_t *p = in + conv->offsets[k];                                                                    \
            EACH_PIXEL(NARROW_STEP)                                                                                      \
        }                                                                                                                \
        if (QUADS && !s16 && channels >= 16 && out_step == 16) {                                                         \
            QUADS_FINISH                                                                                                 \
            return;                                                                                                      \
        }                                                                                                                \
        EACH_PIXEL(NARROW_FINISH)                                                                                        \
    }
NARROW_TILE(narrow_tile, NARROW_EACH, NARROW_QUADS, NARROW_QUADS_FINISH)
NARROW_TILE(narrow_pixel, ONCE, 0, )

#define NARROW_ROW(NAME, S16, WITH)                                                                                          \
    static __attribute__((noinline)) void NAME(const gs_conv *conv, int block, const uint8_t *in, ptrdiff_t in_step,         \
                                               uint8_t *out, ptrdiff_t out_step, const uint8_t *residual, int32_t count) {   \
        int32_t x = 0;                                                                                                       \
        for (; x + NARROW_PIXELS <= count; x += NARROW_PIXELS)                                                               \
            narrow_tile(conv, block, in + x * in_step, in_step, out + x * out_step, out_step,                                \
                        WITH ? residual + x * out_step : NULL, S16, WITH);                                                   \
        for (; x < count; x++)                                                                                               \
            narrow_pixel(conv, block, in + x * in_step, in_step, out + x * out_step, out_step,                               \
                         WITH ? residual + x * out_step : NULL, S16, WITH);                                                  \
    }
NARROW_ROW(narrow_u8, 0, 0)
NARROW_ROW(narrow_u8_residual, 0, 1)
NARROW_ROW(narrow_s16, 1, 0)

static void conv_pixels(const gs_conv *conv, const uint8_t *in, ptrdiff_t in_step, uint8_t *out, ptrdiff_t out_step,
                        const uint8_t *residual, int32_t count, int32_t s16) {
    for (int block = 0; block < conv->blocks; block++) {
        if (conv->narrow)
            (s16 ? narrow_s16 : residual ? narrow_u8_residual : narrow_u8)(conv, block, in, in_step, out, out_step, residual,
                                                                           count);
        else if (s16)
            (conv->distinct == 1 ? conv_1_s16 : conv_4_s16)(conv, block, in, in_step, out, out_step, NULL, count);
        else if (conv->distinct == 1)
            (residual ? conv_1_residual : conv_1)(conv, block, in, in_step, out, out_step, residual, count);
        else if (conv->distinct == 2)
            (residual ? conv_2_residual : conv_2)(conv, block, in, in_step, out, out_step, residual, count);
        else
            (residual ? conv_4_residual : conv_4)(conv, block, in, in_step, out, out_step, residual, count);
    }
}

/* ---- depthwise ---- */

/* One column of three rows: bytes (above, here, below, 0) of every channel. */
INLINE V4 column(const uint8_t *in, ptrdiff_t rows) {
    const V above = V_INPUT(V_LOAD(in - rows)), here = V_INPUT(V_LOAD(in)), below = V_INPUT(V_LOAD(in + rows));
    const V zero = V_ZERO();
    const V low = V_LO8(above, here), high = V_HI8(above, here), low2 = V_LO8(below, zero), high2 = V_HI8(below, zero);
    return (V4){V_LO16(low, low2), V_HI16(low, low2), V_LO16(high, high2), V_HI16(high, high2)};
}

INLINE V dw_sum(V left, V mid, V right, const int8_t *weights, const int32_t *start, F scale, F bias) {
    (void)start;
    V sum = V_DOT(V_START(start), left, V_LOAD(weights));
    sum = V_DOT(sum, mid, V_LOAD(weights + 4 * BLOCK));
    sum = V_DOT(sum, right, V_LOAD(weights + 8 * BLOCK));
    return finished(sum, scale, bias);
}

INLINE V dw_point(V4 left, V4 mid, V4 right, const int8_t *weights, const int32_t *start, F4 scale, F4 bias) {
    const V a = dw_sum(left.a, mid.a, right.a, weights, start, scale.a, bias.a);
    const V b = dw_sum(left.b, mid.b, right.b, weights + BLOCK, start + 4 * LANES, scale.b, bias.b);
    const V c = dw_sum(left.c, mid.c, right.c, weights + 2 * BLOCK, start + 8 * LANES, scale.c, bias.c);
    const V d = dw_sum(left.d, mid.d, right.d, weights + 3 * BLOCK, start + 12 * LANES, scale.d, bias.d);
    return V_PACK16(V_PACK32(a, b), V_PACK32(c, d)); /* the unpacking's inverse: channels in order */
}

static void depthwise(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out, int32_t count) {
    const ptrdiff_t rows = row_step * dilation, channels = dw->channels, side = channels * dilation;
    if (channels % BLOCK == 0) { /* each column of taps serves three outputs */
        for (int set = 0; set < dw->sets; set++) {
            const int8_t *weights = dw->weights + (ptrdiff_t)set * 12 * BLOCK;
            const F4 scale = f_load4(dw->scale + set * BLOCK), bias = f_load4(dw->bias + set * BLOCK);
            const int32_t *start = dw->start + set * BLOCK;
            for (int phase = 0; phase < dilation && phase < count; phase++) {
                const uint8_t *p = in + phase * channels + set * BLOCK;
                uint8_t *to = out + phase * channels + set * BLOCK;
                V4 a = column(p - side, rows), b = column(p, rows), c;
                int x = phase;
                for (; x + 2 * dilation < count; x += 3 * dilation, p += 3 * side, to += 3 * side) {
                    c = column(p + side, rows);
                    V_STORE(to, dw_point(a, b, c, weights, start, scale, bias));
                    a = column(p + 2 * side, rows);
                    V_STORE(to + side, dw_point(b, c, a, weights, start, scale, bias));
                    b = column(p + 3 * side, rows);
                    V_STORE(to + 2 * side, dw_point(c, a, b, weights, start, scale, bias));
                }
                if (x < count) {
                    c = column(p + side, rows);
                    V_STORE(to, dw_point(a, b, c, weights, start, scale, bias));
                    if (x + dilation < count) {
                        a = column(p + 2 * side, rows);
                        V_STORE(to + side, dw_point(b, c, a, weights, start, scale, bias));
                    }
                }
            }
        }
        return;
    }
#if LANES == 4
    if (channels == 16 && dilation == 1) { /* four pixels in a vector: their neighbours' taps are a lane further */
        const F4 scale = f_load4(dw->scale), bias = f_load4(dw->bias);
        V4 before = column(in - BLOCK, rows), here = column(in, rows);
        for (int32_t x = 0; x < count; x += 4) {
            const V4 after = column(in + (x + 4) * 16, rows);
            const V4 left = {v_last_lane(before.a, here.a), v_last_lane(before.b, here.b), v_last_lane(before.c, here.c),
                             v_last_lane(before.d, here.d)};
            const V4 right = {v_first_lane(here.a, after.a), v_first_lane(here.b, after.b), v_first_lane(here.c, after.c),
                              v_first_lane(here.d, after.d)};
            const V result = dw_point(left, here, right, dw->weights, dw->start, scale, bias);
            if (count - x >= 4)
                V_STORE(out + x * 16, result);
            else
                v_store_part(out + x * 16, result, (count - x) * 16);
            before = here;
            here = after;
        }
        return;
    }
#endif
    const ptrdiff_t bytes = count * channels; /* the row as one run of bytes, channels with a period */
    int set = 0;
    for (ptrdiff_t at = 0; at < bytes; at += BLOCK, set = set + 1 == dw->sets ? 0 : set + 1) {
        const F4 scale = f_load4(dw->scale + set * BLOCK), bias = f_load4(dw->bias + set * BLOCK);
        const V result = dw_point(column(in + at - side, rows), column(in + at, rows), column(in + at + side, rows),
                                  dw->weights + (ptrdiff_t)set * 12 * BLOCK, dw->start + set * BLOCK, scale, bias);
        if (bytes - at >= BLOCK)
            V_STORE(out + at, result);
        else
            v_store_part(out + at, result, (int)(bytes - at));
    }
}

/* ---- upsampling ---- */

/* (3 * near + far + 2) / 4 of `bytes` bytes of s16. */
INLINE void blend_rows(const int16_t *near_row, const int16_t *far_row, ptrdiff_t count, int16_t *to) {
    for (ptrdiff_t i = 0; i < count; i += 8 * LANES) {
        const V a = V_LOAD(near_row + i), b = V_LOAD(far_row + i);
        const V sum = V_ADD16(V_ADD16(V_ADD16(a, a), V_ADD16(a, b)), V_SET16(2));
        V_STORE(to + i, V_SRA16(sum, 2));
    }
}

INLINE V blend(V near_pixel, V far_pixel) { /* (3 * near + far + 16) / 32: eighths of a step become steps */
    const V twice = V_ADD16(near_pixel, near_pixel);
    return V_SRA16(V_ADD16(V_ADD16(twice, V_SET16(16)), V_ADD16(near_pixel, far_pixel)), 5);
}

INLINE void upsampled_row(const int16_t *row, int32_t count, int32_t channels, uint8_t *to) {
    if (channels % BLOCK == 0) {
        for (int32_t x = 0; x < count; x++)
            for (int32_t c = 0; c < channels; c += BLOCK) {
                const int16_t *p = row + (ptrdiff_t)x * channels + c;
                const V low = V_LOAD(p), high = V_LOAD(p + BLOCK / 2);
                const V low_left = V_LOAD(p - channels), high_left = V_LOAD(p - channels + BLOCK / 2);
                const V low_right = V_LOAD(p + channels), high_right = V_LOAD(p + channels + BLOCK / 2);
                uint8_t *pair = to + 2 * (ptrdiff_t)x * channels + c;
                V_STORE(pair, v_natural(V_PACK16(blend(low, low_left), blend(high, high_left))));
                V_STORE(pair + channels, v_natural(V_PACK16(blend(low, low_right), blend(high, high_right))));
            }
        return;
    }
#if LANES > 1
    if (channels == 16 && count % (LANES / 2) == 0) { /* whole pixels in a vector */
        for (int32_t x = 0; x < count; x += LANES / 2) {
            const int16_t *p = row + (ptrdiff_t)x * 16;
            const V mid = V_LOAD(p);
            V_STORE(to + 32 * x, v_alternate16(blend(mid, V_LOAD(p - 16)), blend(mid, V_LOAD(p + 16))));
        }
        return;
    }
#endif
    for (int32_t x = 0; x < count; x++)
        for (int32_t c = 0; c < channels; c++) {
            const int16_t *p = row + (ptrdiff_t)x * channels + c;
            const int near_sum = 3 * p[0] + 16, left = (near_sum + p[-channels]) >> 5, right = (near_sum + p[channels]) >> 5;
            uint8_t *pair = to + 2 * (ptrdiff_t)x * channels + c;
            pair[0] = (uint8_t)(left < 0 ? 0 : left > 255 ? 255 : left);
            pair[channels] = (uint8_t)(right < 0 ? 0 : right > 255 ? 255 : right);
        }
}

static void upsample(const int16_t *above, const int16_t *mid, const int16_t *below, int32_t count, int32_t channels,
                     int16_t *scratch, uint8_t *upper, uint8_t *lower) {
    int16_t *row = scratch + channels;
    const size_t pixel = (size_t)channels * sizeof(int16_t);
    for (int half = 0; half < 2; half++) {
        blend_rows(mid, half ? below : above, (ptrdiff_t)count * channels, row);
        memcpy(row - channels, row, pixel); /* edges repeated */
        memcpy(row + (ptrdiff_t)count * channels, row + (ptrdiff_t)(count - 1) * channels, pixel);
        upsampled_row(row, count, channels, half ? lower : upper);
    }
}

/* ---- label head ---- */

#define HEAD_PIXELS 16
#define HEAD_VECTORS (4 / LANES)
#if LANES == 4
#define HEAD_EACH(F) F(0)
#elif LANES == 2
#define HEAD_EACH(F) F(0) F(1)
#else
#define HEAD_EACH(F) F(0) F(1) F(2) F(3)
#endif
typedef struct {
    F4 of[HEAD_VECTORS];
} Scores;

/* HEAD_PIXELS pixels of 16 channels from c on -> floats, channel by channel. */
INLINE void transposed(const uint8_t *in, int32_t channels, float *to) {
    uint8_t bytes[16][16];
    Q a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = Q_LOAD(in + (ptrdiff_t)i * channels);
    for (int stage = 0; stage < 4; stage++) {
        for (int i = 0; i < 8; i++) {
            b[2 * i] = Q_LO8(a[i], a[i + 8]);
            b[2 * i + 1] = Q_HI8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++) a[i] = b[i];
    }
    for (int i = 0; i < 16; i++) Q_STORE(bytes[i], a[i]);
    for (int c = 0; c < 16; c++)
        for (int i = 0; i < HEAD_PIXELS; i++) to[c * HEAD_PIXELS + i] = (float)bytes[c][i];
}

#define SCORE_START(v) score.of[v] = (F4){F_SET(bias[0]), F_SET(bias[1]), F_SET(bias[2]), F_SET(bias[3])};
#define SCORE_SUM(v)                                           \
    {                                                          \
        const F value = F_LOAD(pixels + v * 4 * LANES);        \
        score.of[v].a = F_FMA(value, first, score.of[v].a);      \
        score.of[v].b = F_FMA(value, second, score.of[v].b);     \
        score.of[v].c = F_FMA(value, third, score.of[v].c);      \
        score.of[v].d = F_FMA(value, fourth, score.of[v].d);     \
    }
INLINE Scores scores(const float *pixels, const float *weights, const float *bias, int32_t cin) {
    Scores score;
    HEAD_EACH(SCORE_START)
    for (int32_t k = 0; k < cin; k++, weights += 4, pixels += HEAD_PIXELS) {
        const F first = F_SET(weights[0]), second = F_SET(weights[1]), third = F_SET(weights[2]), fourth = F_SET(weights[3]);
        HEAD_EACH(SCORE_SUM)
    }
    return score;
}

#define HEAD_START(v)                                                \
    best.of[v] = (F4){lowest, lowest, lowest, lowest};                \
    index[v] = (V4){V_ZERO(), V_ZERO(), V_ZERO(), V_ZERO()};
#define HEAD_BETTER(v)                                                     \
    F_BETTER(score.of[v].a, best.of[v].a, index[v].a, which);                \
    F_BETTER(score.of[v].b, best.of[v].b, index[v].b, which);                \
    F_BETTER(score.of[v].c, best.of[v].c, index[v].c, which);                \
    F_BETTER(score.of[v].d, best.of[v].d, index[v].d, which);
#define HEAD_STORE(v)                                                                            \
    v_store_pairs(upper + v * 8 * LANES, V_OR(index[v].a, V_SHL32(index[v].b, 8)));              \
    v_store_pairs(lower + v * 8 * LANES, V_OR(index[v].c, V_SHL32(index[v].d, 8)));
#define HEAD_BEST(v)                                                       \
    F_BETTER(score.of[v].a, best.of[v].a, index[v].a, V_SET32(4 * g));       \
    F_BETTER(score.of[v].b, best.of[v].a, index[v].a, V_SET32(4 * g + 1));   \
    F_BETTER(score.of[v].c, best.of[v].a, index[v].a, V_SET32(4 * g + 2));   \
    F_BETTER(score.of[v].d, best.of[v].a, index[v].a, V_SET32(4 * g + 3));
#define HEAD_STORE_SINGLE(v) v_store_single(upper + v * 4 * LANES, index[v].a);

INLINE void head_tile(const gs_head *head, const float *pixels, const int cin, uint8_t *upper, uint8_t *lower) {
    const F lowest = F_SET(-__builtin_inff());
    Scores best;
    V4 index[HEAD_VECTORS];
    HEAD_EACH(HEAD_START)
    if (head->positions == 4) {
        for (int g = 0; g < head->classes; g++) {
            const Scores score = scores(pixels, head->weights + (ptrdiff_t)g * cin * 4, head->bias + 4 * g, cin);
            const V which = V_SET32(g);
            HEAD_EACH(HEAD_BETTER)
        }
        HEAD_EACH(HEAD_STORE)
        return;
    }
    for (int g = 0; 4 * g < head->classes; g++) {
        const Scores score = scores(pixels, head->weights + (ptrdiff_t)g * cin * 4, head->bias + 4 * g, cin);
        HEAD_EACH(HEAD_BEST)
    }
    HEAD_EACH(HEAD_STORE_SINGLE)
}

static void head_row(const gs_head *head, const uint8_t *in, int32_t count, uint8_t *upper, uint8_t *lower) {
    float pixels[GS_HEAD_CHANNELS * HEAD_PIXELS] __attribute__((aligned(GS_ALIGN)));
    const int wide = head->positions == 4 ? 2 : 1;
    for (int32_t x = 0; x < count; x += HEAD_PIXELS) {
        const uint8_t *p = in + (ptrdiff_t)x * head->channels;
        uint8_t rest[2][2 * HEAD_PIXELS];
        const int part = count - x < HEAD_PIXELS; /* the last ones: labels go there first; bytes behind the row are read */
        uint8_t *to_upper = part ? rest[0] : upper + wide * x, *to_lower = part ? rest[1] : lower + wide * x;
        for (int c = 0; c < head->channels; c += 16) transposed(p + c, head->channels, pixels + c * HEAD_PIXELS);
        if (head->cin == 16)
            head_tile(head, pixels, 16, to_upper, to_lower);
        else
            head_tile(head, pixels, head->cin, to_upper, to_lower);
        if (part) {
            memcpy(upper + wide * x, rest[0], (size_t)(wide * (count - x)));
            if (wide == 2) memcpy(lower + wide * x, rest[1], (size_t)(wide * (count - x)));
        }
    }
}

/* ---- the rest ---- */

static void pool(const uint8_t *upper, const uint8_t *lower, int32_t channels, const float *scale, const float *bias,
                 uint8_t *out, ptrdiff_t out_step, int32_t count) {
    for (int32_t x = 0; x < count; x++)
        for (int32_t c = 0; c < channels; c += 16) {
            const ptrdiff_t left = 2 * (ptrdiff_t)x * channels + c, right = left + channels;
            uint8_t bytes[16];
            Q_STORE(bytes, Q_MAX8(Q_MAX8(Q_LOAD(upper + left), Q_LOAD(upper + right)),
                                  Q_MAX8(Q_LOAD(lower + left), Q_LOAD(lower + right))));
            V wide[NARROW_VECTORS];
            v_widen16(bytes, wide);
            _Pragma("GCC unroll 4") for (int v = 0; v < NARROW_VECTORS; v++) {
                const int at = c + v * 4 * LANES;
                wide[v] = V_ROUND(F_FMA(F_FROM(wide[v]), F_LOAD(scale + at), F_LOAD(bias + at)));
            }
            Q_STORE(out + x * out_step + c, v_narrow16(wide));
        }
}

static void add(const uint8_t *in, const uint8_t *residual, float scale, float bias, float residual_scale, uint8_t *out,
                int32_t count) {
    for (int32_t at = 0; at < count; at += 16) {
        V a[NARROW_VECTORS], b[NARROW_VECTORS];
        v_widen16(in + at, a);
        v_widen16(residual + at, b);
        _Pragma("GCC unroll 4") for (int v = 0; v < NARROW_VECTORS; v++) {
            const F value = F_FMA(F_FROM(a[v]), F_SET(scale), F_SET(bias));
            a[v] = V_ROUND(F_FMA(F_FROM(b[v]), F_SET(residual_scale), value));
        }
        Q_STORE(out + at, v_narrow16(a));
    }
}

#define TWELVE(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define PEAK_F(i) F f##i = F_SET((float)i);
#define PEAK_V(i) V v##i = V_SET32(i);
#define PEAK_FMA(i) f##i = F_FMA(f##i, half, half);
#define PEAK_DOT(i) v##i = V_DOT(v##i, u, s);
#define PEAK_OUT(i) V_STORE(sink + i * BLOCK, v##i);
#define PEAK_OUT_F(i) memcpy(sink + i * BLOCK, &f##i, sizeof f##i);

static int64_t peak(int32_t kind, int64_t rounds) {
    volatile int32_t seed = 0x01010101;
    uint8_t sink[12 * BLOCK];
    int32_t rest = 0;
    int64_t done = 0;
    if (kind == 0) {
        const F half = F_SET(0.5f * (float)(seed != 0));
        TWELVE(PEAK_F)
        for (int64_t n = 0; n < rounds; n++) {
            TWELVE(PEAK_FMA)
            done += 12 * 4 * LANES;
        }
        TWELVE(PEAK_OUT_F)
    } else {
        const V u = V_SET32(seed), s = V_SET32(seed);
        TWELVE(PEAK_V)
        for (int64_t n = 0; n < rounds; n++) {
            TWELVE(PEAK_DOT)
            done += 12 * BLOCK;
        }
        TWELVE(PEAK_OUT)
    }
    for (size_t i = 0; i < sizeof sink; i++) rest |= sink[i]; /* so that nothing is left out */
    return rest == seed ? done + 1 : done;
}

const gs_kernels KERNELS = {KERNELS_NAME, LANES, available, conv_pixels, depthwise, upsample, head_row, pool, add, peak};
