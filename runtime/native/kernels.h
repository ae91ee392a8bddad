/* What one instruction set offers to the plan: functions on rows of pixels. Written once in kernels_body.h. */
#ifndef GRADSEG_KERNELS_H
#define GRADSEG_KERNELS_H
#include <stddef.h>
#include <stdint.h>

#include "gradseg_native.h"

#define GS_ALIGN 64
#define S16_LIMIT 8187 /* four of them and a rounding constant fit int16 */
#define GS_HEAD_CHANNELS 512 /* most channels that a label head reads */
#define GS_HEAD_CHUNK 32     /* classes numbered in the lowest bits of sums */
#define GS_HEAD_WEIGHT 32639 /* most of a weight: 127 * 256 + 127, in two signed bytes */

/* A convolution made ready. The sum over a kernel window is `steps` steps of 4 bytes; step k of a pixel lies at
 * offsets[k] from the pixel's address. Outputs come in blocks (16 * lanes channels, or 16 where `narrow`); weights are
 * (block, step, channel of block, 4). Vector v of a block reads `deltas[block * 4 + v]` bytes further on. */
typedef struct {
    int32_t steps, blocks, narrow, distinct; /* distinct: 1, 2 or 4 different deltas in a block */
    int32_t cout;                            /* channels to write */
    const int32_t *offsets;
    const int32_t *deltas;
    const int8_t *weights;
    const float *scale, *bias; /* padded to whole blocks */
    const int32_t *start;      /* 128 * sum of weights: what sums begin with where inputs are taken less 128 */
    float residual_scale;
} gs_conv;

/* A depthwise convolution: weights in `sets` phases of one vector of channels, (set, 2, column, 4 vectors, 4 bytes each): the
 * four bytes (above, here, below, 0), and those of the output a row further down, (0, above, here, below). */
typedef struct {
    int32_t sets, channels;
    const int8_t *weights;
    const float *scale, *bias; /* (set, 4 vectors) in the order of the interleaved channels */
    const int32_t *start;      /* as a gs_conv's */
} gs_dw;

/* Rows (class, position) of the head in groups of four: weights are (group, four channels, row, 4), channels in the order
 * 0, 2, 1, 3; start is (group, row). A sum of start and weights * (input << shift) is score << shift, and in its lowest bits
 * stands (1 << shift) - 1 less the number of the class within its chunk: the greatest sum is that of the first of the best
 * classes. Rows that take no part start, and stay, at the least int32. */
typedef struct {
    int32_t classes, channels, positions, shift; /* positions: 1 or 4 */
    const int16_t *weights;
    const int32_t *start, *start_less; /* start_less: for inputs less 128 */
} gs_head;

typedef struct {
    const char *name;
    int32_t lanes; /* of 128 bits in a vector */
    int (*available)(void);
    /* count pixels from x on: pixel i is read at in + i * in_step, written to out + i * out_step (bytes); s16: two bytes each. */
    void (*conv)(const gs_conv *conv, const uint8_t *in, ptrdiff_t in_step, uint8_t *out, ptrdiff_t out_step,
                 const uint8_t *residual, int32_t count, int32_t s16);
    /* One row; in: its first pixel, rows row_step bytes apart; dilation d. */
    void (*depthwise)(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out, int32_t count);
    /* That row and the one `dilation` further down, which goes to out + second. */
    void (*depthwise_pair)(const gs_dw *dw, const uint8_t *in, ptrdiff_t row_step, int32_t dilation, uint8_t *out,
                           ptrdiff_t second, int32_t count);
    /* Two output rows of 2 * count pixels from input row `mid` and its neighbours. */
    void (*upsample)(const int16_t *above, const int16_t *mid, const int16_t *below, int32_t count, int32_t channels,
                     uint8_t *upper, uint8_t *lower);
    /* One row of inputs -> labels: one row, or two of twice the width. */
    void (*head)(const gs_head *head, const uint8_t *in, int32_t count, uint8_t *upper, uint8_t *lower);
    /* count pixels: maximum of 2x2, affine; channels a multiple of 16. */
    void (*pool)(const uint8_t *upper, const uint8_t *lower, int32_t channels, const float *scale, const float *bias,
                 uint8_t *out, ptrdiff_t out_step, int32_t count);
    /* count bytes, a multiple of 16: in * scale + bias + residual * residual_scale. */
    void (*add)(const uint8_t *in, const uint8_t *residual, float scale, float bias, float residual_scale, uint8_t *out,
                int32_t count);
    /* see gs_peak */
    int64_t (*peak)(int32_t kind, int64_t rounds);
} gs_kernels;

/* What this compiler can build. */
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define GS_AVX_VNNI
#endif
#if defined(__aarch64__) && defined(__linux__)
#define GS_NEON
#endif
#if defined(GS_NEON) && (defined(__clang__) ? __clang_major__ >= 11 : __GNUC__ >= 10)
#define GS_NEON_I8MM
#endif

extern const gs_kernels gs_kernels_avx512, gs_kernels_avxvnni, gs_kernels_avx2, gs_kernels_neon_i8mm, gs_kernels_neon_dotprod,
    gs_kernels_scalar;
#endif
