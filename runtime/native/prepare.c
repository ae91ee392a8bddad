#if defined(__linux__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#endif
#include "check.h"
#include "prepare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLACK 256                 /* bytes before and behind every buffer that vectors may read */
#define LARGE_PAGE ((size_t)1 << 21)
#define BAD_WEIGHT "a weight is -128; expected -127 to 127"

/* Memory for `size` bytes. Large pages where they are to be had: rows of a tensor lie in many small ones. */
static void *allocated(size_t size) {
#ifdef MADV_HUGEPAGE
    if (size > LARGE_PAGE / 2) {
        const size_t whole = (size + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
        void *made = aligned_alloc(LARGE_PAGE, whole);
        if (made) (void)madvise(made, whole, MADV_HUGEPAGE); /* a wish */
        return made;
    }
#endif
    return aligned_alloc(GS_ALIGN, size);
}

static void *own(gs_program *program, size_t bytes) {
    if (program->owned_count == program->owned_room) {
        const size_t room = program->owned_room ? 2 * program->owned_room : 64;
        void **more = realloc(program->owned, room * sizeof *more);
        if (!more) return NULL;
        program->owned = more;
        program->owned_room = room;
    }
    const size_t size = (bytes + GS_ALIGN - 1) / GS_ALIGN * GS_ALIGN + GS_ALIGN;
    void *made = allocated(size);
    if (made) {
        memset(made, 0, size);
        program->owned[program->owned_count++] = made;
    }
    return made;
}

void gs_release(gs_program *program) {
    for (size_t i = 0; i < program->owned_count; i++) free(program->owned[i]);
    free(program->owned);
    memset(program, 0, sizeof *program);
}

/* ---- memory: tensors of one shape take turns in its buffers ---- */

static int32_t fused_away(const gs_program *program, int32_t tensor) {
    for (int32_t i = 0; i < program->op_count; i++)
        if (program->steps[i].skipped && program->ops[i].out == tensor) return 1;
    return 0;
}

static int alike(const gs_tensor *a, const gs_tensor *b) {
    return gs_same_size(a, b) && a->dtype == b->dtype && a->zero == b->zero;
}

static uint8_t *new_buffer(gs_program *program, const gs_tensor *tensor, int32_t halo, ptrdiff_t pixel) {
    const size_t rows = (size_t)tensor->height + 2 * (size_t)halo, row = ((size_t)tensor->width + 2 * (size_t)halo) * (size_t)pixel;
    const size_t margin = SLACK + 16 * (size_t)pixel;
    uint8_t *made = own(program, rows * row + 2 * margin);
    if (!made) return NULL;
    if (pixel == 3) {
        for (size_t i = 0; i < rows * row; i++) made[margin + i] = (uint8_t)(tensor->zero >> 8 * (i % 3));
    } else {
        memset(made, tensor->dtype == GS_U8 ? tensor->zero : 0, rows * row + 2 * margin);
    }
    return made + margin + (size_t)halo * row + (size_t)halo * (size_t)pixel;
}

static const char *lay_out(gs_program *program) {
    const int32_t count = program->tensor_count;
    int32_t *last = calloc((size_t)count, sizeof *last), *free_from = calloc((size_t)count, sizeof *free_from);
    const char *problem = last && free_from ? NULL : GS_NO_MEMORY;
    for (int32_t i = 0; !problem && i < program->op_count; i++) {
        last[program->ops[i].in] = i + (program->steps[i].skipped ? 1 : 0); /* read when the next one runs */
        if (program->ops[i].residual >= 0) last[program->ops[i].residual] = i;
    }
    /* free_from[t]: the operator from which on the buffer first made for tensor t may serve another */
    for (int32_t i = -1; !problem && i < program->op_count; i++) {
        const int32_t t = i < 0 ? 0 : program->ops[i].out;
        if (i >= 0 && (program->ops[i].kind == GS_HEAD || program->memory[t].at || fused_away(program, t))) continue;
        const gs_tensor *tensor = &program->tensors[t];
        gs_memory *memory = &program->memory[t];
        int32_t halo = 0;
        for (int32_t j = 0; j < count; j++)
            if (alike(tensor, &program->tensors[j]) && program->tensors[j].halo > halo) halo = program->tensors[j].halo;
        memory->pixel = tensor->channels * (tensor->dtype == GS_S16 ? 2 : 1);
        memory->row = (tensor->width + 2 * (ptrdiff_t)halo) * memory->pixel;
        memory->buffer = t;
        for (int32_t j = 1; t && j < count && !memory->at; j++)
            if (j != t && program->memory[j].at && program->memory[j].buffer == j && alike(tensor, &program->tensors[j]) &&
                free_from[j] <= i) {
                memory->at = program->memory[j].at;
                memory->buffer = j;
            }
        if (!memory->at) memory->at = new_buffer(program, tensor, halo, memory->pixel);
        if (!memory->at) problem = GS_NO_MEMORY;
        free_from[memory->buffer] = last[t] + 1;
    }
    for (int32_t i = 0; !problem && i < program->op_count; i++) { /* fused tensors live in scratch, row by row */
        gs_memory *memory = program->steps[i].skipped ? &program->memory[program->ops[i].out] : NULL;
        if (memory) memory->pixel = program->tensors[program->ops[i].out].channels;
    }
    free(last);
    free(free_from);
    return problem;
}

/* ---- packing ---- */

/* Where a convolution's weight lies, -1 where there is none and 0 belongs. */
static int64_t weight_index(const gs_op *op, int32_t out, int32_t in, int32_t i, int32_t j) {
    const int32_t group_in = op->cin / op->groups, group_out = op->cout / op->groups;
    if (out >= op->cout || in >= op->cin || j >= op->kw || in / group_in != out / group_out) return -1;
    return (((int64_t)out * op->kh + i) * op->kw + j) * group_in + in % group_in;
}

/* The channels of the input that some of a vector's output channels have a weight for that is not 0, from `start` to `end`,
 * multiples of 4. Other than groups, this also finds what folded channel shuffles leave unused. */
static void span_of(const gs_op *op, int32_t first, int32_t channels, int32_t *start, int32_t *end) {
    int32_t lowest = op->cin, highest = -1;
    for (int32_t out = first; out < first + channels && out < op->cout; out++)
        for (int32_t in = 0; in < op->cin; in++)
            for (int32_t tap = 0; tap < op->kh * op->kw; tap++) {
                const int64_t at = weight_index(op, out, in, tap / op->kw, tap % op->kw);
                if (at < 0 || !((const int8_t *)op->weight)[at]) continue;
                if (in < lowest) lowest = in;
                if (in > highest) highest = in;
            }
    *start = highest < 0 ? 0 : lowest / 4 * 4;
    *end = highest < 0 ? 4 : gs_up_to(highest + 1, 4);
}

/* Vectors whose inputs lie within one span begin to read at the same place. */
static void share(int32_t *starts, int32_t *ends, int32_t count, int32_t span) {
    int32_t start = starts[0], end = ends[0];
    for (int32_t v = 1; v < count; v++) {
        if (starts[v] < start) start = starts[v];
        if (ends[v] > end) end = ends[v];
    }
    for (int32_t v = 0; end - start <= span && v < count; v++) {
        starts[v] = start;
        ends[v] = end;
    }
}

static const char *pack_conv(gs_program *program, gs_step *step, const gs_op *op) {
    gs_conv *conv = &step->conv;
    const gs_tensor *in = &program->tensors[op->in], *out = &program->tensors[op->out];
    const gs_memory *memory = &program->memory[op->in];
    const int32_t lanes = program->kernels->lanes, block = 16 * lanes, s16 = out->dtype == GS_S16;
    const int32_t from_frame = op->in == 0, stored = from_frame ? gs_up_to(3 * op->kw, 4) : in->channels;
    conv->cout = op->out_offset ? op->cout : gs_up_to(op->cout, 16);
    conv->narrow = s16 ? out->channels % block != 0 : conv->cout <= 16;
    conv->residual_scale = op->residual_scale;
    const int32_t width = conv->narrow ? 16 : block; /* channels of a block */
    const int32_t vector = conv->narrow ? 16 : 4 * lanes;
    conv->blocks = gs_up_to(conv->cout, width) / width;
    int32_t *deltas = own(program, (size_t)conv->blocks * 4 * sizeof *deltas);
    if (!deltas) return GS_NO_MEMORY;
    int32_t *ends = own(program, (size_t)conv->blocks * 4 * sizeof *ends), span = 4;
    if (!ends) return GS_NO_MEMORY;
    for (int32_t at = 0; at < 4 * conv->blocks; at++) {
        if (from_frame)
            ends[at] = stored;
        else
            span_of(op, at / 4 * width + (conv->narrow ? 0 : at % 4 * vector), vector, &deltas[at], &ends[at]);
        if (ends[at] - deltas[at] > span) span = ends[at] - deltas[at];
    }
    conv->distinct = 1;
    for (int32_t b = 0; b < conv->blocks; b++) {
        int32_t *delta = deltas + 4 * b, *end = ends + 4 * b;
        share(delta, end, 2, span);
        share(delta + 2, end + 2, 2, span);
        share(delta, end, 4, span);
        if (delta[0] != delta[1] || delta[2] != delta[3])
            conv->distinct = 4;
        else if (delta[0] != delta[2] && conv->distinct < 2)
            conv->distinct = 2;
    }
    conv->deltas = deltas;
    const int32_t rows = op->kh, columns = from_frame ? 1 : op->kw, per_tap = span / 4;
    conv->steps = rows * columns * per_tap;
    int32_t *offsets = own(program, (size_t)conv->steps * sizeof *offsets);
    int8_t *weights = own(program, (size_t)conv->blocks * (size_t)conv->steps * 4 * (size_t)width);
    const size_t padded = (size_t)conv->blocks * (size_t)width;
    float *scale = own(program, padded * sizeof *scale), *bias = own(program, padded * sizeof *bias);
    int32_t *start = own(program, padded * sizeof *start);
    if (!offsets || !weights || !scale || !bias || !start) return GS_NO_MEMORY;
    for (int32_t k = 0; k < conv->steps; k++) {
        const int32_t i = k / per_tap / columns, j = k / per_tap % columns;
        offsets[k] = (int32_t)(i * op->dy * memory->row + j * op->dx * memory->pixel + k % per_tap * 4);
    }
    for (int32_t b = 0; b < conv->blocks; b++)
        for (int32_t k = 0; k < conv->steps; k++)
            for (int32_t c = 0; c < width; c++)
                for (int32_t n = 0; n < 4; n++) {
                    const int32_t i = k / per_tap / columns, j = k / per_tap % columns, at = k % per_tap * 4 + n;
                    const int32_t channel = b * width + c, delta = deltas[4 * b + (conv->narrow ? 0 : c / vector)];
                    const int64_t to = (((int64_t)b * conv->steps + k) * width + c) * 4 + n;
                    const int64_t from = from_frame ? weight_index(op, channel, at % 3, i, at / 3)
                                                    : weight_index(op, channel, delta + at, i, j);
                    if (from < 0) continue;
                    weights[to] = ((const int8_t *)op->weight)[from];
                    if (weights[to] == INT8_MIN) return BAD_WEIGHT;
                    start[channel] += 128 * weights[to];
                }
    memcpy(scale, op->scale, (size_t)op->cout * sizeof *scale);
    memcpy(bias, op->bias, (size_t)op->cout * sizeof *bias);
    conv->offsets = offsets;
    conv->weights = weights;
    conv->scale = scale;
    conv->bias = bias;
    conv->start = start;
    return NULL;
}

static const char *pack_depthwise(gs_program *program, gs_step *step, const gs_op *op) {
    gs_dw *dw = &step->dw;
    const int32_t block = 16 * program->kernels->lanes, channels = program->tensors[op->in].channels;
    int32_t common = block;
    while (common % channels) common += block;
    dw->channels = channels;
    dw->sets = (channels % block ? common : channels) / block;
    int8_t *weights = own(program, (size_t)dw->sets * 24 * (size_t)block);
    float *scale = own(program, (size_t)dw->sets * (size_t)block * sizeof *scale);
    float *bias = own(program, (size_t)dw->sets * (size_t)block * sizeof *bias);
    int32_t *start = own(program, (size_t)dw->sets * (size_t)block * sizeof *start);
    if (!weights || !scale || !bias || !start) return GS_NO_MEMORY;
    const int8_t *given = op->weight;
    for (int32_t at = 0; at < dw->sets * block; at++) {
        const int32_t set = at / block, lane = at % block / 16, v = at % 16 / 4, j = at % 4, channel = at % channels;
        const int64_t place = ((int64_t)set * 4 + v) * (block / 4) + lane * 4 + j; /* as unpacking leaves them */
        if (channel >= op->cin) continue;
        scale[place] = op->scale[channel];
        bias[place] = op->bias[channel];
        for (int32_t column = 0; column < 3; column++)
            for (int32_t row = 0; row < 3; row++) {
                const int8_t weight = given[(channel * 3 + row) * 3 + column];
                if (weight == INT8_MIN) return BAD_WEIGHT;
                for (int32_t below = 0; below < 2; below++)
                    weights[(((((int64_t)set * 2 + below) * 3 + column) * 4 + v) * (block / 4) + lane * 4 + j) * 4 + row + below] =
                        weight;
                start[place] += 128 * weight;
            }
    }
    dw->weights = weights;
    dw->scale = scale;
    dw->bias = bias;
    dw->start = start;
    return NULL;
}

#define SCORES_MAX 1024 /* 256 classes at 4 positions */

/* What a class's score can be at a position, from inputs of 0 to 255. The products are exact. */
static void score_range(const gs_op *op, int32_t class, int32_t position, double *least, double *most) {
    const int32_t positions = op->kh * op->kw;
    const float *weights = (const float *)op->weight + (int64_t)class * op->cin * positions + position;
    *least = *most = op->bias[class];
    for (int32_t k = 0; k < op->cin; k++) {
        const double term = 255.0 * weights[(int64_t)k * positions];
        *(term < 0 ? least : most) += term;
    }
}

static double lesser(double a, double b) { return a < b ? a : b; }
static double greater(double a, double b) { return a > b ? a : b; }

/* The scale of the head's integers, see gradseg_native.h; the middle of each position's scores; and the classes that some
 * input may make the best: the others take no part. */
static double head_scale(const gs_op *op, int32_t shift, double *middle, uint8_t *takes_part) {
    const int32_t positions = op->kh * op->kw;
    double least[SCORES_MAX / 4], most[SCORES_MAX / 4], reach = 0, largest = 0;
    for (int32_t j = 0; j < positions; j++) {
        double sure = -INFINITY, bottom = INFINITY, top = -INFINITY;
        for (int32_t c = 0; c < op->cout; c++) {
            score_range(op, c, j, &least[c], &most[c]);
            sure = greater(sure, least[c]);
        }
        for (int32_t c = 0; c < op->cout; c++) {
            takes_part[c * positions + j] = most[c] >= sure;
            if (most[c] < sure) continue;
            bottom = lesser(bottom, least[c]);
            top = greater(top, most[c]);
            const float *weights = (const float *)op->weight + (int64_t)c * op->cin * positions + j;
            for (int32_t k = 0; k < op->cin; k++) largest = greater(largest, fabs(weights[(int64_t)k * positions]));
        }
        middle[j] = (bottom + top) / 2;
        reach = greater(reach, (top - bottom) / 2);
    }
    const double limit = ldexp(1, 31 - shift) - 2 - (255.0 * op->cin + 1) / 2; /* less what rounding may add */
    const double ratio = lesser(GS_HEAD_WEIGHT / largest, limit / reach);      /* infinite where all is 0 */
    int exponent = 1;
    if (isfinite(ratio)) frexp(ratio, &exponent);
    return ldexp(1, exponent - 1);
}

static const char *pack_head(gs_program *program, gs_step *step, const gs_op *op) {
    gs_head *head = &step->head;
    const int32_t positions = op->kh * op->kw, values = op->cout * op->cin * positions;
    const float *given = op->weight;
    int finite = 1;
    for (int32_t i = 0; i < values; i++) finite &= isfinite(given[i]) != 0;
    for (int32_t i = 0; i < op->cout; i++) finite &= isfinite(op->bias[i]) != 0;
    if (!finite) return "a weight or bias of the label head is not finite";
    head->classes = op->cout;
    head->channels = program->tensors[op->in].channels;
    head->positions = positions;
    for (head->shift = 0; 1 << head->shift < op->cout && 1 << head->shift < GS_HEAD_CHUNK;) head->shift++;
    double middle[4];
    uint8_t takes_part[SCORES_MAX];
    const double scale = head_scale(op, head->shift, middle, takes_part);
    const int32_t groups = positions == 4 ? op->cout : gs_up_to(op->cout, 4) / 4;
    int16_t *weights = own(program, (size_t)groups * (size_t)head->channels * 4 * sizeof *weights);
    int32_t *start = own(program, (size_t)groups * 4 * sizeof *start);
    int32_t *start_less = own(program, (size_t)groups * 4 * sizeof *start_less);
    if (!weights || !start || !start_less) return GS_NO_MEMORY;
    for (int32_t row = 0; row < 4 * groups; row++) {
        const int32_t position = positions == 4 ? row % 4 : 0, class = positions == 4 ? row / 4 : row;
        start[row] = start_less[row] = INT32_MIN;
        if (class >= op->cout || !takes_part[class * positions + position]) continue;
        const int32_t bias = (int32_t)rint((op->bias[class] - middle[position]) * scale);
        start[row] = bias * (1 << head->shift) + (1 << head->shift) - 1 - class % GS_HEAD_CHUNK;
        uint32_t sum = 0; /* wraps, as the kernels' sums may */
        for (int32_t k = 0; k < op->cin; k++) {
            const double weight = rint(given[((int64_t)class * op->cin + k) * positions + position] * scale);
            const int64_t four = (int64_t)(row / 4) * (head->channels / 4) + k / 4;
            weights[(four * 4 + row % 4) * 4 + k % 2 * 2 + k % 4 / 2] = (int16_t)weight;
            sum += (uint32_t)(int32_t)weight;
        }
        start_less[row] = (int32_t)((uint32_t)start[row] + (sum << (7 + head->shift)));
    }
    head->weights = weights;
    head->start = start;
    head->start_less = start_less;
    return NULL;
}

static const char *pack_pool(gs_program *program, gs_step *step, const gs_op *op) {
    const int32_t channels = gs_up_to(program->tensors[op->in].channels, 16);
    float *scale = own(program, (size_t)channels * sizeof *scale), *bias = own(program, (size_t)channels * sizeof *bias);
    if (!scale || !bias) return GS_NO_MEMORY;
    memcpy(scale, op->scale, (size_t)op->cin * sizeof *scale);
    memcpy(bias, op->bias, (size_t)op->cin * sizeof *bias);
    step->conv.scale = scale;
    step->conv.bias = bias;
    return NULL;
}

/* A depthwise convolution whose output only the 1x1 convolution behind it reads runs within that one. */
static void fuse(gs_program *program) {
    for (int32_t i = 0; i + 1 < program->op_count; i++) {
        const gs_op *first = &program->ops[i], *second = &program->ops[i + 1];
        if (first->kind != GS_DEPTHWISE || second->kind != GS_CONV || second->in != first->out || second->kh != 1 ||
            second->kw != 1 || second->sy != 1 || second->sx != 1 || second->pt || second->pl ||
            second->out_h != program->tensors[first->out].height || second->out_w != program->tensors[first->out].width)
            continue;
        int32_t uses = 0;
        for (int32_t j = 0; j < program->op_count; j++)
            uses += (program->ops[j].in == first->out) + (program->ops[j].residual == first->out) +
                    (program->ops[j].kind != GS_HEAD && program->ops[j].out == first->out);
        if (uses != 2) continue; /* written once, read once */
        program->steps[i].skipped = 1;
        program->steps[i + 1].fused = i + 1;
    }
}

static const char *pack(gs_program *program, int32_t i) {
    gs_step *step = &program->steps[i];
    const gs_op *op = &program->ops[i];
    const gs_tensor *in = &program->tensors[op->in];
    step->rows = op->kind == GS_CONV || op->kind == GS_POOL ? op->out_h : in->height;
    size_t scratch = 0;
    const char *problem = NULL;
    switch (op->kind) {
        case GS_CONV:
            problem = pack_conv(program, step, op);
            if (!problem && step->fused) {
                problem = pack_depthwise(program, step, &program->ops[i - 1]);
                scratch = 2 * (size_t)in->width * (size_t)in->channels;
            }
            break;
        case GS_DEPTHWISE:
            problem = pack_depthwise(program, step, op);
            break;
        case GS_HEAD:
            problem = pack_head(program, step, op);
            break;
        case GS_POOL:
            problem = pack_pool(program, step, op);
            break;
        default:
            break;
    }
    scratch = (scratch + 2 * SLACK + GS_ALIGN - 1) / GS_ALIGN * GS_ALIGN;
    if (scratch > program->scratch) program->scratch = scratch;
    return problem;
}

const char *gs_prepare(gs_program *program, const gs_kernels *kernels, const gs_tensor *tensors, int32_t tensor_count,
                       const gs_op *ops, int32_t op_count, char *error, int32_t size) {
    if (tensor_count < 1 || op_count < 1 || tensor_count > 100000 || op_count > 100000) return "the program is empty or too long";
    program->kernels = kernels;
    program->tensor_count = tensor_count;
    program->op_count = op_count;
    program->tensors = own(program, (size_t)tensor_count * sizeof *tensors);
    program->ops = own(program, (size_t)op_count * sizeof *ops);
    program->steps = own(program, (size_t)op_count * sizeof *program->steps);
    program->memory = own(program, (size_t)tensor_count * sizeof *program->memory);
    if (!program->tensors || !program->ops || !program->steps || !program->memory) return GS_NO_MEMORY;
    memcpy(program->tensors, tensors, (size_t)tensor_count * sizeof *tensors);
    memcpy(program->ops, ops, (size_t)op_count * sizeof *ops);
    const char *problem = gs_check(program);
    if (problem) return problem;
    fuse(program);
    problem = lay_out(program);
    for (int32_t i = 0; !problem && i < op_count; i++) {
        problem = pack(program, i);
        if (problem) snprintf(error, (size_t)size, "operator %d: %s", (int)i, problem);
    }
    return problem ? (error[0] ? error : problem) : NULL;
}

/* ---- for tests ---- */

int32_t gs_read_tensor(const gs_program *program, int32_t tensor, void *out) {
    if (tensor < 0 || tensor >= program->tensor_count || !program->memory[tensor].at) return -1;
    const gs_tensor *shape = &program->tensors[tensor];
    const gs_memory *memory = &program->memory[tensor];
    const int32_t lanes = program->kernels->lanes, block = 16 * lanes;
    const size_t row = (size_t)shape->width * (size_t)memory->pixel;
    for (int32_t y = 0; y < shape->height; y++) {
        const uint8_t *from = memory->at + (ptrdiff_t)y * memory->row;
        uint8_t *to = (uint8_t *)out + (size_t)y * row;
        if (shape->dtype != GS_S16 || shape->channels % block) {
            memcpy(to, from, row);
            continue;
        }
        for (int32_t e = 0; e < shape->width * shape->channels; e++) { /* as packing left them, see kernels_body.h */
            const int32_t in_block = e % block, lane = in_block % (8 * lanes) / 8;
            const int32_t vector = in_block / (8 * lanes) * 2 + in_block % 8 / 4;
            const int32_t channel = vector * 4 * lanes + 4 * lane + in_block % 4;
            memcpy(to + 2 * (e - in_block + channel), from + 2 * e, 2);
        }
    }
    return 0;
}

void gs_pool_frame(const uint8_t *upper, const uint8_t *lower, const float *scale, const float *bias, uint8_t *out,
                   ptrdiff_t out_step, int32_t count) {
    for (int32_t x = 0; x < count; x++)
        for (int32_t c = 0; c < 3; c++) {
            const uint8_t *a = upper + 6 * (ptrdiff_t)x + c, *b = lower + 6 * (ptrdiff_t)x + c;
            uint8_t most = a[0] > a[3] ? a[0] : a[3];
            if (b[0] > most) most = b[0];
            if (b[3] > most) most = b[3];
            const float value = nearbyintf(fmaf((float)most, scale[c], bias[c]));
            out[x * out_step + c] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
}
