/* INT8 inference for the ERFNet family on CPUs: programs of a few operators on NHWC uint8 tensors.
 *
 * A program is a list of tensors and a list of operators that run in order. All arithmetic:
 *     acc   = sum of weight * input              int32, exact; input as stored, zero point not subtracted
 *     value = acc * scale[c] + bias[c]           float32; + residual * residual_scale where there is a residual
 *     out   = clamp(round half even(value))      0..255 for uint8, -8187..8187 for int16
 * The caller folds zero points and ReLU (a zero point of 0) into bias. Outside a tensor lies its zero point, as far as
 * `halo` pixels: padding reads that.
 *
 * A label head computes with integers, so its labels are the same on every CPU. At each of its kh * kw positions:
 *     score[c] = sum of rint(weight * s) * input + rint((bias[c] - m) * s)       label: the first class with the best score
 * Left out at a position are classes whose greatest value, inputs being 0 to 255, is below another's least. Values of the
 * others span m - r to m + r. s, one for the head, is the greatest power of two with |weight| * s <= 32639 for their weights
 * and r * s <= 2^(31 - b) - 2 - (255 * cin + 1) / 2 at every position, where b bits hold the numbers 0 to
 * min(classes, 32) - 1; it is 1 where no value but 0 is left.
 */
#ifndef GRADSEG_NATIVE_H
#define GRADSEG_NATIVE_H
#include <stdint.h>

#define GS_ABI 2
#define GS_OFFSETS_MAX 4096

enum gs_dtype { GS_U8 = 0, GS_S16 = 1 };
enum gs_kind {
    GS_CONV = 0,      /* any kernel, stride, dilation, groups; u8 -> u8 or s16 */
    GS_DEPTHWISE = 1, /* 3x3, stride 1, dilation dy = dx; u8 -> u8, same channels */
    GS_UPSAMPLE = 2,  /* x2 bilinear, half-pixel centres, edges repeated; s16 in eighths of the output's steps -> u8:
                       * first rows, (3 * near + far + 2) >> 2, then columns, (3 * near + far + 16) >> 5 */
    GS_POOL = 3,      /* 2x2 stride-2 maximum, then value = max * scale[c] + bias[c]; u8 -> u8 */
    GS_HEAD = 4,      /* scores of a kh x kw = 1x1 convolution or 2x2 stride-2 deconvolution; the best class -> labels */
    GS_ADD = 5        /* value = in * scale[0] + bias[0] + residual * residual_scale; u8, u8 -> u8 */
};

/* channels: as stored, a multiple of 16, but 3 for tensor 0, the frame. halo: pixels on each side. zero: what lies there;
 * for the frame three bytes, b | g << 8 | r << 16. */
typedef struct { int32_t height, width, channels, halo, dtype, zero; } gs_tensor;

/* A convolution's output pixel (y, x) reads input pixels (y * sy - pt + i * dy, x * sx - pl + j * dx) and goes to
 * (y * oy + py, x * ox + px) of the output tensor, channels out_offset .. out_offset + cout. It has out_h * out_w pixels.
 * weight: int8, -127..127, (cout, kh, kw, cin / groups) for GS_CONV; (cin, 3, 3) for GS_DEPTHWISE;
 *         float32 (classes = cout, cin, kh, kw) for GS_HEAD, the input's scale folded in. Copied by gs_create.
 * scale, bias: float32 (cout). residual: a tensor of the output's shape, or -1. cin, cout: real channels; stored ones beyond
 * them are 0 in the input and are written as 0 (only for GS_CONV with out_offset 0). */
typedef struct {
    int32_t kind, in, out, residual;
    int32_t cin, cout, groups, out_offset;
    int32_t kh, kw, sy, sx, dy, dx, pt, pl;
    int32_t oy, py, ox, px, out_h, out_w;
    float residual_scale;
    const void *weight;
    const float *scale;
    const float *bias;
} gs_op;

typedef struct gs_plan gs_plan;

int32_t gs_abi(void);
/* What this CPU runs best: "avx512-vnni", "avx-vnni", "avx2", "neon-i8mm", "neon-dotprod" or "scalar"; all give the same
 * labels. wanted: one of them to force it, or NULL. NULL if this CPU or this build cannot. */
const char *gs_isa(const char *wanted);
/* threads >= 1, the caller's included. NULL with a message in `error` (of `size` bytes) if something cannot be done. */
gs_plan *gs_create(const gs_tensor *tensors, int32_t tensor_count, const gs_op *ops, int32_t op_count, int32_t threads,
                   const char *isa, char *error, int32_t size);
struct gs_resize; /* frames.h */
/* Brings a frame of another size in, on all threads: gs_run with frame NULL then computes on it. 0, or -1 and nothing is
 * done if `resize` is of another size. */
int32_t gs_load(gs_plan *plan, const struct gs_resize *resize, const uint8_t *frame, int64_t frame_stride);
/* frame: uint8 (height, width, 3) with `frame_stride` bytes a row. labels: uint8 (height, width) of the head's output.
 * nanoseconds: NULL, or one int64 per operator. Not reentrant. */
void gs_run(gs_plan *plan, const uint8_t *frame, int64_t frame_stride, uint8_t *labels, int64_t *nanoseconds);
/* The labels of the last gs_run at another size, (out_height, out_width), on all threads. */
struct gs_repeat; /* frames.h */
void gs_spread(gs_plan *plan, const struct gs_repeat *repeat, uint8_t *out);
/* From any thread, also within gs_run: one thread stands aside at the end of its piece of work, until gs_return. Comes back
 * when it has, or after some milliseconds; the caller's core is then free for other work. With one thread nothing changes. */
void gs_borrow(gs_plan *plan);
void gs_return(gs_plan *plan);
/* Copies a tensor's interior out (height, width, channels), for tests; after gs_run. Tensors that were fused away: -1. */
int32_t gs_read(const gs_plan *plan, int32_t tensor, void *out);
void gs_destroy(gs_plan *plan);
/* What the best instructions reach without touching memory: runs `rounds` rounds of 12 independent float32
 * multiply-adds (kind 0) or INT8 dot products (kind 1) and returns how many multiply-accumulates those were. */
int64_t gs_peak(int32_t kind, int64_t rounds);
#endif
