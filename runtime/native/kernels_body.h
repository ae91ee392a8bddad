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

/* One column of three rows, or of the four that two rows of outputs need: bytes (above, here, below, 0 or the fourth) of
 * every channel. */
INLINE V4 column(const uint8_t *in, ptrdiff_t rows, const int pair) {
    const V above = V_INPUT(V_LOAD(in - rows)), here = V_INPUT(V_LOAD(in)), below = V_INPUT(V_LOAD(in + rows));
    const V fourth = pair ? V_INPUT(V_LOAD(in + 2 * rows)) : V_ZERO();
    const V low = V_LO8(above, here), high = V_HI8(above, here), low2 = V_LO8(below, fourth), high2 = V_HI8(below, fourth);
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

INLINE void dw_store(uint8_t *to, V bytes, ptrdiff_t count) {
    if (count >= BLOCK)
        V_STORE(to, bytes);
    else
        v_store_part(to, bytes, (int)count);
}

/* The outputs of three columns, the first `bytes` bytes of them; in a pair the row below it too. */
#define DW_OUTPUT(to, bytes, left, mid, right)                                                                   \
    {                                                                                                            \
        dw_store(to, dw_point(left, mid, right, weights, start, scale, bias), bytes);                            \
        if (pair)                                                                                                \
            dw_store((to) + second, dw_point(left, mid, right, weights + 12 * BLOCK, start, scale, bias), bytes); \
    }

INLINE void depthwise_rows(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out,
                           ptrdiff_t second, int32_t count, const int pair) {
    const ptrdiff_t rows = row_step * dilation, channels = dw->channels, side = channels * dilation;
    if (channels % BLOCK == 0) { /* each column of taps serves three outputs */
        for (int set = 0; set < dw->sets; set++) {
            const int8_t *weights = dw->weights + (ptrdiff_t)set * 24 * BLOCK;
            const F4 scale = f_load4(dw->scale + set * BLOCK), bias = f_load4(dw->bias + set * BLOCK);
            const int32_t *start = dw->start + set * BLOCK;
            for (int phase = 0; phase < dilation && phase < count; phase++) {
                const uint8_t *p = in + phase * channels + set * BLOCK;
                uint8_t *to = out + phase * channels + set * BLOCK;
                V4 a = column(p - side, rows, pair), b = column(p, rows, pair), c;
                int x = phase;
                for (; x + 2 * dilation < count; x += 3 * dilation, p += 3 * side, to += 3 * side) {
                    c = column(p + side, rows, pair);
                    DW_OUTPUT(to, BLOCK, a, b, c)
                    a = column(p + 2 * side, rows, pair);
                    DW_OUTPUT(to + side, BLOCK, b, c, a)
                    b = column(p + 3 * side, rows, pair);
                    DW_OUTPUT(to + 2 * side, BLOCK, c, a, b)
                }
                if (x < count) {
                    c = column(p + side, rows, pair);
                    DW_OUTPUT(to, BLOCK, a, b, c)
                    if (x + dilation < count) {
                        a = column(p + 2 * side, rows, pair);
                        DW_OUTPUT(to + side, BLOCK, b, c, a)
                    }
                }
            }
        }
        return;
    }
    const ptrdiff_t bytes = count * channels; /* the row as one run of bytes, channels with a period */
#if LANES == 4
    if (channels == 16 && dilation == 1) { /* four pixels in a vector: their neighbours' taps are a lane further */
        const int8_t *weights = dw->weights;
        const int32_t *start = dw->start;
        const F4 scale = f_load4(dw->scale), bias = f_load4(dw->bias);
        V4 before = column(in - BLOCK, rows, pair), here = column(in, rows, pair);
        for (ptrdiff_t at = 0; at < bytes; at += BLOCK) {
            const V4 after = column(in + at + BLOCK, rows, pair);
            const V4 left = {v_last_lane(before.a, here.a), v_last_lane(before.b, here.b), v_last_lane(before.c, here.c),
                             v_last_lane(before.d, here.d)};
            const V4 right = {v_first_lane(here.a, after.a), v_first_lane(here.b, after.b), v_first_lane(here.c, after.c),
                              v_first_lane(here.d, after.d)};
            DW_OUTPUT(out + at, bytes - at, left, here, right)
            before = here;
            here = after;
        }
        return;
    }
#endif
    int set = 0;
    for (ptrdiff_t at = 0; at < bytes; at += BLOCK, set = set + 1 == dw->sets ? 0 : set + 1) {
        const int8_t *weights = dw->weights + (ptrdiff_t)set * 24 * BLOCK;
        const int32_t *start = dw->start + set * BLOCK;
        const F4 scale = f_load4(dw->scale + set * BLOCK), bias = f_load4(dw->bias + set * BLOCK);
        const V4 left = column(in + at - side, rows, pair), mid = column(in + at, rows, pair),
                 right = column(in + at + side, rows, pair);
        DW_OUTPUT(out + at, bytes - at, left, mid, right)
    }
}

static void depthwise(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out, int32_t count) {
    depthwise_rows(dw, in, row_step, dilation, out, 0, count, 0);
}

static void depthwise_pair(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out,
                           ptrdiff_t second, int32_t count) {
    depthwise_rows(dw, in, row_step, dilation, out, second, count, 1);
}

/* ---- upsampling ---- */

/* Rows: (3 * near + far + 2) / 4, above and below a row of inputs. Columns: (3 * near + far + 16) / 32, left and right of
 * one: eighths of a step become steps. */
typedef struct {
    V upper, lower;
} Rows;

INLINE V thrice(V v, int constant) { return V_ADD16(V_ADD16(V_ADD16(v, v), V_SET16(constant)), v); }

INLINE Rows blended(const int16_t *above, const int16_t *mid, const int16_t *below) {
    const V near_sum = thrice(V_LOAD(mid), 2);
    return (Rows){V_SRA16(V_ADD16(near_sum, V_LOAD(above)), 2), V_SRA16(V_ADD16(near_sum, V_LOAD(below)), 2)};
}

INLINE V beside(V near_sum, V far_pixel) { return V_SRA16(V_ADD16(near_sum, far_pixel), 5); }

/* A pixel's block of channels in two vectors, with its neighbours' -> the two outputs side by side. */
INLINE void side_by_side(V left_low, V left_high, V low, V high, V right_low, V right_high, uint8_t *to, ptrdiff_t channels) {
    low = thrice(low, 16), high = thrice(high, 16);
    V_STORE(to, v_natural(V_PACK16(beside(low, left_low), beside(high, left_high))));
    V_STORE(to + channels, v_natural(V_PACK16(beside(low, right_low), beside(high, right_high))));
}

/* One pixel's channels from the first to before the last: rows as for `upsample`; left, right: how far its neighbours are. */
static void upsampled_pixel(const int16_t *above, const int16_t *mid, const int16_t *below, ptrdiff_t left, ptrdiff_t right,
                            int32_t channels, uint8_t *upper, uint8_t *lower) {
    for (int half = 0; half < 2; half++) {
        const int16_t *far_row = half ? below : above;
        uint8_t *to = half ? lower : upper;
        for (int32_t c = 0; c < channels; c++) {
            const int near_sum = 3 * ((3 * mid[c] + far_row[c] + 2) >> 2) + 16;
            const int before = (near_sum + ((3 * mid[c + left] + far_row[c + left] + 2) >> 2)) >> 5;
            const int after = (near_sum + ((3 * mid[c + right] + far_row[c + right] + 2) >> 2)) >> 5;
            to[c] = (uint8_t)(before < 0 ? 0 : before > 255 ? 255 : before);
            to[c + channels] = (uint8_t)(after < 0 ? 0 : after > 255 ? 255 : after);
        }
    }
}

static void upsample(const int16_t *above, const int16_t *mid, const int16_t *below, int32_t count, int32_t channels,
                     uint8_t *upper, uint8_t *lower) {
    if (channels % BLOCK == 0) {
        for (int32_t c = 0; c < channels; c += BLOCK) {
            const int16_t *p = mid + c, *a = above + c, *b = below + c;
            Rows low = blended(a, p, b), high = blended(a + BLOCK / 2, p + BLOCK / 2, b + BLOCK / 2);
            Rows left_low = low, left_high = high, right_low, right_high; /* edges repeated */
            for (int32_t x = 0; x < count; x++) {
                const ptrdiff_t at = (ptrdiff_t)(x + 1 < count ? x + 1 : x) * channels, to = 2 * (ptrdiff_t)x * channels + c;
                right_low = blended(a + at, p + at, b + at);
                right_high = blended(a + at + BLOCK / 2, p + at + BLOCK / 2, b + at + BLOCK / 2);
                side_by_side(left_low.upper, left_high.upper, low.upper, high.upper, right_low.upper, right_high.upper,
                             upper + to, channels);
                side_by_side(left_low.lower, left_high.lower, low.lower, high.lower, right_low.lower, right_high.lower,
                             lower + to, channels);
                left_low = low, left_high = high, low = right_low, high = right_high;
            }
        }
        return;
    }
    int32_t x = 0;
#if LANES > 1
    if (channels == 16) { /* whole pixels in a vector, between those at the edges */
        upsampled_pixel(above, mid, below, 0, count > 1 ? 16 : 0, 16, upper, lower);
        for (x = 1; x + LANES / 2 < count; x += LANES / 2) {
            const ptrdiff_t at = 16 * (ptrdiff_t)x;
            const Rows left = blended(above + at - 16, mid + at - 16, below + at - 16);
            const Rows here = blended(above + at, mid + at, below + at);
            const Rows right = blended(above + at + 16, mid + at + 16, below + at + 16);
            const V up = thrice(here.upper, 16), low = thrice(here.lower, 16);
            V_STORE(upper + 2 * at, v_alternate16(beside(up, left.upper), beside(up, right.upper)));
            V_STORE(lower + 2 * at, v_alternate16(beside(low, left.lower), beside(low, right.lower)));
        }
    }
#endif
    for (; x < count; x++) {
        const ptrdiff_t at = (ptrdiff_t)x * channels;
        upsampled_pixel(above + at, mid + at, below + at, x ? -channels : 0, x + 1 < count ? channels : 0, channels,
                        upper + 2 * at, lower + 2 * at);
    }
}

/* ---- label head ---- */

#define HEAD_PIXELS 16
#define HEAD_VECTORS (4 / LANES) /* with 32 bits for each of those pixels */
#if LANES == 4
#define HEAD_EACH(F) F(0)
#elif LANES == 2
#define HEAD_EACH(F) F(0) F(1)
#else
#define HEAD_EACH(F) F(0) F(1) F(2) F(3)
#endif
typedef struct {
    V4 of[HEAD_VECTORS];
} Scores; /* of four rows of the head */

#ifdef HEAD_BYTES_START
#define HEAD_STEPS 4 /* for 16 channels: four bytes each */
#else
#define HEAD_STEPS 8 /* for 16 channels: channels 0 and 2 of four as int16, times 1 << shift, then 1 and 3 */
#endif

/* HEAD_PIXELS pixels of 16 channels -> HEAD_STEPS times HEAD_VECTORS vectors, in the order that v_natural puts right. */
INLINE void head_inputs(const uint8_t *in, const int32_t channels, int shift, V *to) {
    const ptrdiff_t step = LANES * (ptrdiff_t)channels;
    (void)shift;
    _Pragma("GCC unroll 4") for (int v = 0; v < HEAD_VECTORS; v++) {
        const uint8_t *p = in + 4 * v * step;
        const V a = v_gather(p, channels), b = v_gather(p + step, channels), c = v_gather(p + 2 * step, channels),
                d = v_gather(p + 3 * step, channels);
        const V first = V_LO32(a, b), second = V_HI32(a, b), third = V_LO32(c, d), fourth = V_HI32(c, d);
        const V fours[4] = {V_LO64(first, third), V_HI64(first, third), V_LO64(second, fourth), V_HI64(second, fourth)};
        _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++) {
#ifdef HEAD_BYTES_START
            to[q * HEAD_VECTORS + v] = v_four_bytes(fours[q]);
#else
            to[2 * q * HEAD_VECTORS + v] = v_even(fours[q], shift);
            to[(2 * q + 1) * HEAD_VECTORS + v] = v_odd(fours[q], shift);
#endif
        }
    }
}

#define SCORE_START(v) score.of[v] = (V4){V_SET32(start[0]), V_SET32(start[1]), V_SET32(start[2]), V_SET32(start[3])};
#define SCORE_ZERO(v) score.of[v] = (V4){V_ZERO(), V_ZERO(), V_ZERO(), V_ZERO()};
#define SCORE_SUM(v)                                                    \
    V_DOT_ROW(score.of[v].a, inputs[k * HEAD_VECTORS + v], four, 0);    \
    V_DOT_ROW(score.of[v].b, inputs[k * HEAD_VECTORS + v], four, 1);    \
    V_DOT_ROW(score.of[v].c, inputs[k * HEAD_VECTORS + v], four, 2);    \
    V_DOT_ROW(score.of[v].d, inputs[k * HEAD_VECTORS + v], four, 3);
#define SCORE_SHIFT(v)                                                                                       \
    score.of[v] = (V4){v_shl32(score.of[v].a, bits), v_shl32(score.of[v].b, bits), v_shl32(score.of[v].c, bits), \
                       v_shl32(score.of[v].d, bits)};
#define SCORE_ADD_START(v)                                             \
    score.of[v].a = V_ADD32(score.of[v].a, V_SET32(start[0]));         \
    score.of[v].b = V_ADD32(score.of[v].b, V_SET32(start[1]));         \
    score.of[v].c = V_ADD32(score.of[v].c, V_SET32(start[2]));         \
    score.of[v].d = V_ADD32(score.of[v].d, V_SET32(start[3]));

/* Sums of a group of rows. */
INLINE Scores scores(const gs_head *head, const V *inputs, int32_t group, const int32_t channels, int shift) {
    Scores score;
    (void)shift;
#ifdef HEAD_BYTES_START /* dot products of bytes: with the weights' upper bytes, then with their lower ones */
    const int32_t *start = head->HEAD_BYTES_START + 4 * group;
    const V *const all = inputs;
    HEAD_EACH(SCORE_ZERO)
    _Pragma("GCC unroll 2") for (int part = 0; part < 2; part++) {
        const int16_t *weights = head->weights + 4 * (ptrdiff_t)group * channels;
        const int bits = part ? shift : 8;
        inputs = all;
        for (int32_t c = 0; c < channels; c += 16, inputs += 4 * HEAD_VECTORS, weights += 64) {
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {
                const V four = part ? v_lower(weights + 16 * k) : v_upper(weights + 16 * k);
                HEAD_EACH(SCORE_SUM)
            }
        }
        HEAD_EACH(SCORE_SHIFT)
    }
    HEAD_EACH(SCORE_ADD_START)
#else
    const int16_t *weights = head->weights + 4 * (ptrdiff_t)group * channels;
    const int32_t *start = head->start + 4 * group;
    HEAD_EACH(SCORE_START)
    for (int32_t c = 0; c < channels; c += 16, inputs += 8 * HEAD_VECTORS, weights += 64) {
        _Pragma("GCC unroll 8") for (int k = 0; k < 8; k++) {
            const int16_t *four = weights + 16 * (k / 2) + 2 * (k % 2);
            HEAD_EACH(SCORE_SUM)
        }
    }
#endif
    return score;
}

#define HEAD_START(v)                                  \
    most[v] = (V4){lowest, lowest, lowest, lowest};    \
    index[v] = (V4){V_ZERO(), V_ZERO(), V_ZERO(), V_ZERO()};
#define CHUNK_START(v) best.of[v] = (V4){lowest, lowest, lowest, lowest};
#define CHUNK_BEST(v)                                          \
    best.of[v].a = V_MAX32(best.of[v].a, score.of[v].a);       \
    best.of[v].b = V_MAX32(best.of[v].b, score.of[v].b);       \
    best.of[v].c = V_MAX32(best.of[v].c, score.of[v].c);       \
    best.of[v].d = V_MAX32(best.of[v].d, score.of[v].d);
/* A chunk's best class counts where its score is greater than those before; classes lie in the lowest bits, inverted. */
#define HEAD_BETTER(v, row)                                                                       \
    {                                                                                             \
        const V sum = best.of[v].row, limit = V_OR(most[v].row, low);                              \
        index[v].row = V_PICK(sum, limit, V_OR(V_ANDNOT(sum, low), V_SET32(named)), index[v].row); \
        most[v].row = V_PICK(sum, limit, sum, most[v].row);                                        \
    }
#define HEAD_BETTER_4(v) HEAD_BETTER(v, a) HEAD_BETTER(v, b) HEAD_BETTER(v, c) HEAD_BETTER(v, d)
#define HEAD_BETTER_1(v)                                                                                             \
    best.of[v].a = V_MAX32(V_MAX32(best.of[v].a, best.of[v].b), V_MAX32(best.of[v].c, best.of[v].d));                 \
    HEAD_BETTER(v, a)
#define HEAD_STORE_4(v)                                                                                     \
    v_store_pairs(upper + v * 8 * LANES, v_natural(V_OR(index[v].a, V_SHL32(index[v].b, 8))));              \
    v_store_pairs(lower + v * 8 * LANES, v_natural(V_OR(index[v].c, V_SHL32(index[v].d, 8))));
#define HEAD_STORE_1(v) v_store_single(upper + v * 4 * LANES, v_natural(index[v].a));

/* Rows are four positions of one class, or four classes. */
INLINE void head_tile(const gs_head *head, const uint8_t *in, const int32_t channels, uint8_t *upper, uint8_t *lower) {
    const int four = head->positions == 4, shift = head->shift;
    const int32_t groups = four ? head->classes : (head->classes + 3) / 4, chunk = four ? GS_HEAD_CHUNK : GS_HEAD_CHUNK / 4;
    const V lowest = V_SET32(INT32_MIN), low = V_SET32((1 << shift) - 1);
    V inputs[GS_HEAD_CHANNELS / 16 * HEAD_STEPS * HEAD_VECTORS];
    V4 most[HEAD_VECTORS], index[HEAD_VECTORS];
    _Pragma("GCC unroll 1") for (int32_t c = 0; c < channels; c += 16)
        head_inputs(in + c, channels, shift, inputs + c / 16 * HEAD_STEPS * HEAD_VECTORS);
    HEAD_EACH(HEAD_START)
    for (int32_t first = 0, named = 0; first < groups; first += chunk, named += GS_HEAD_CHUNK) {
        const int32_t end = first + chunk < groups ? first + chunk : groups;
        Scores best;
        HEAD_EACH(CHUNK_START)
        for (int32_t g = first; g < end; g++) {
            const Scores score = scores(head, inputs, g, channels, shift);
            HEAD_EACH(CHUNK_BEST)
        }
        if (four) {
            HEAD_EACH(HEAD_BETTER_4)
        } else {
            HEAD_EACH(HEAD_BETTER_1)
        }
    }
    if (four) {
        HEAD_EACH(HEAD_STORE_4)
    } else {
        HEAD_EACH(HEAD_STORE_1)
    }
}

static void head_row(const gs_head *head, const uint8_t *in, int32_t count, uint8_t *upper, uint8_t *lower) {
    const int wide = head->positions == 4 ? 2 : 1;
    for (int32_t x = 0; x < count; x += HEAD_PIXELS) {
        const uint8_t *p = in + (ptrdiff_t)x * head->channels;
        uint8_t rest[2][2 * HEAD_PIXELS];
        const int part = count - x < HEAD_PIXELS; /* the last ones: labels go there first; bytes behind the row are read */
        uint8_t *to_upper = part ? rest[0] : upper + wide * x, *to_lower = part ? rest[1] : lower + wide * x;
        if (head->channels == 16)
            head_tile(head, p, 16, to_upper, to_lower);
        else
            head_tile(head, p, head->channels, to_upper, to_lower);
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

const gs_kernels KERNELS = {KERNELS_NAME, LANES, available, conv_pixels, depthwise, depthwise_pair, upsample, head_row, pool, add, peak};
