/* Runs random programs on two instruction sets of one library and compares every tensor and the labels byte for byte.
 * Arguments: two names (see gs_isa), the number of programs. Exit status 0: all the same; 1: not; 3: a name this CPU lacks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gradseg_native.h"

#define TENSORS 12
#define OPS 12
#define KEPT 64

static uint32_t state = 1;
static uint32_t random_bits(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}
static int32_t below(int32_t limit) { return (int32_t)(random_bits() % (uint32_t)limit); }
static float between(float low, float high) { return low + (high - low) * (float)below(1 << 20) / (float)(1 << 20); }

static gs_tensor tensors[TENSORS];
static gs_op ops[OPS];
static int32_t tensor_count, op_count, kept_count;
static void *kept[KEPT];

static void *keep(size_t bytes) {
    void *made = kept_count < KEPT ? malloc(bytes) : NULL;
    if (!made) exit(2);
    kept[kept_count++] = made;
    return made;
}

static const int8_t *weights(int32_t count) { /* the extremes often: that is where sums overflow */
    int8_t *made = keep((size_t)count);
    for (int32_t i = 0; i < count; i++) made[i] = (int8_t)(below(4) ? below(255) - 127 : below(2) ? 127 : -127);
    return made;
}

static const float *floats(int32_t count, float low, float high) {
    float *made = keep((size_t)count * sizeof *made);
    for (int32_t i = 0; i < count; i++) made[i] = between(low, high);
    return made;
}

static int32_t tensor(int32_t height, int32_t width, int32_t channels, int32_t halo, int32_t dtype) {
    tensors[tensor_count] = (gs_tensor){height, width, channels, halo, dtype, dtype || below(2) ? 0 : below(256)};
    return tensor_count++;
}

static gs_op *op(int32_t kind, int32_t in, int32_t out) {
    gs_op *made = &ops[op_count++];
    *made = (gs_op){.kind = kind, .in = in, .out = out, .residual = -1, .groups = 1, .kh = 1, .kw = 1, .sy = 1, .sx = 1,
                    .dy = 1, .dx = 1, .oy = 1, .ox = 1, .cin = tensors[in].channels};
    if (out >= 0) {
        made->cout = tensors[out].channels;
        made->out_h = tensors[out].height;
        made->out_w = tensors[out].width;
    }
    return made;
}

static void fill(gs_op *made, float gain) { /* outputs that use the whole range, clipped on both sides */
    const int32_t reads = made->kh * made->kw * made->cin / made->groups;
    made->weight = weights(made->cout * reads);
    made->scale = floats(made->cout, 0.2f * gain / (float)reads, gain / (float)reads);
    made->bias = floats(made->cout, -20 * gain, 120 * gain);
}

static int32_t conv(int32_t in, int32_t channels, int32_t kernel, int32_t stride, int32_t dilation, int32_t groups, int32_t dtype) {
    const gs_tensor from = tensors[in];
    const int32_t out = tensor((from.height - 1) / stride + 1, (from.width - 1) / stride + 1, channels, dtype ? 0 : 4, dtype);
    gs_op *made = op(GS_CONV, in, out);
    made->kh = made->kw = kernel;
    made->sy = made->sx = stride;
    made->dy = made->dx = dilation;
    made->pt = made->pl = dilation * (kernel / 2);
    made->groups = groups;
    fill(made, dtype ? 8 : 1);
    if (!dtype && stride == 1 && in && channels == from.channels && below(2)) {
        tensors[out].zero = 0;
        made->residual = in;
        made->residual_scale = between(0.2f, 0.9f);
    }
    return out;
}

static int32_t layer(int32_t in) {
    static const int32_t channels[] = {16, 32, 48, 64, 80, 128};
    const gs_tensor from = tensors[in];
    const int32_t wanted = channels[below(6)], groups = 1 << below(4);
    const int fits = from.channels % groups == 0 && wanted % groups == 0;
    switch (below(6)) {
        case 0:
            return conv(in, wanted, 1 + 2 * below(2), 1 + below(2), 1, fits ? groups : 1, GS_U8);
        case 1:
            return conv(in, from.channels, 1 + 2 * below(2), 1, 1 + below(2), fits ? groups : 1, GS_U8);
        case 2: {
            const int32_t out = tensor(from.height, from.width, from.channels, 4, GS_U8);
            gs_op *made = op(GS_DEPTHWISE, in, out);
            made->dy = made->dx = 1 + below(4);
            made->cout = from.channels;
            made->weight = weights(9 * from.channels);
            made->scale = floats(from.channels, 0.02f, 0.1f);
            made->bias = floats(from.channels, -20, 120);
            return below(2) ? out : conv(out, wanted, 1, 1, 1, 1, GS_U8); /* the second one: run as one */
        }
        case 3: {
            if (from.height > 24 || from.width > 64) return in;
            const int32_t mid = conv(in, wanted, 1, 1, 1, 1, GS_S16);
            const int32_t out = tensor(2 * from.height, 2 * from.width, wanted, 4, GS_U8);
            tensors[out].zero = 0;
            op(GS_UPSAMPLE, mid, out);
            return out;
        }
        case 4: {
            if (from.height < 4 || from.width < 4) return in;
            const int32_t out = tensor(from.height / 2, from.width / 2, from.channels + 16, 4, GS_U8);
            gs_op *made = op(GS_CONV, in, out);
            made->kh = made->kw = 3;
            made->sy = made->sx = 2;
            made->pt = made->pl = 1;
            made->cout = 1 + below(16);
            fill(made, 1);
            made = op(GS_POOL, in, out);
            made->out_offset = 16;
            made->scale = floats(from.channels, 0.5f, 1.5f);
            made->bias = floats(from.channels, -30, 30);
            return out;
        }
        default: {
            const int32_t out = tensor(from.height, from.width, from.channels, 4, GS_U8);
            gs_op *made = op(GS_ADD, in, out);
            made->residual = in;
            made->residual_scale = between(0.1f, 0.9f);
            made->scale = floats(1, 0.1f, 0.9f);
            made->bias = floats(1, -30, 30);
            return out;
        }
    }
}

static void program(void) {
    while (kept_count) free(kept[--kept_count]);
    tensor_count = op_count = 0;
    tensor(5 + below(30), 5 + below(60), 3, 4, GS_U8);
    tensors[0].zero = below(1 << 24);
    int32_t last = conv(0, 16 * (1 + below(5)), 3, 1 + below(2), 1, 1, GS_U8);
    for (int32_t layers = 1 + below(3); layers > 0; layers--) last = layer(last);
    gs_op *head = op(GS_HEAD, last, -1);
    head->kh = head->kw = 1 + below(2);
    head->cout = 1 + below(below(4) ? 30 : 256);
    head->weight = floats(head->cout * head->cin * head->kh * head->kw, -1, 1);
    head->bias = floats(head->cout, -5, 5);
}

/* Everything that can be read after a run, one tensor behind another, then the labels. */
static uint8_t *results(const char *isa, const uint8_t *frame, size_t *size) {
    char error[200] = "";
    gs_plan *plan = gs_create(tensors, tensor_count, ops, op_count, 1 + below(3), isa, error, sizeof error);
    if (!plan) {
        fprintf(stderr, "%s: %s\n", isa, error);
        exit(2);
    }
    const gs_op *head = &ops[op_count - 1];
    const gs_tensor *last = &tensors[head->in];
    const size_t labels = (size_t)last->height * (size_t)last->width * (size_t)(head->kh * head->kw);
    size_t bytes = labels;
    for (int32_t i = 1; i < tensor_count; i++)
        bytes += 2 * (size_t)tensors[i].height * (size_t)tensors[i].width * (size_t)tensors[i].channels;
    uint8_t *made = calloc(bytes, 1), *at = made + labels;
    if (!made) exit(2);
    for (int run = 0; run < 2; run++) gs_run(plan, frame, (int64_t)tensors[0].width * 3, made, NULL);
    for (int32_t i = 1; i < tensor_count; i++) {
        gs_read(plan, i, at);
        at += 2 * (size_t)tensors[i].height * (size_t)tensors[i].width * (size_t)tensors[i].channels;
    }
    gs_destroy(plan);
    *size = bytes;
    return made;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    for (int i = 1; i < 3; i++)
        if (!gs_isa(argv[i])) {
            printf("this CPU or build lacks %s\n", argv[i]);
            return 3;
        }
    int wrong = 0;
    for (int number = 0; number < atoi(argv[3]); number++) {
        state = (uint32_t)number + 1;
        program();
        const size_t bytes = (size_t)tensors[0].height * (size_t)tensors[0].width * 3;
        uint8_t *frame = malloc(bytes);
        if (!frame) return 2;
        for (size_t i = 0; i < bytes; i++) frame[i] = (uint8_t)(below(3) ? below(256) : below(2) ? 255 : 0);
        size_t first_size, second_size;
        uint8_t *first = results(argv[1], frame, &first_size), *second = results(argv[2], frame, &second_size);
        if (memcmp(first, second, first_size)) {
            printf("program %d differs:", number);
            for (int32_t i = 0; i < op_count; i++) printf(" %d(%d->%d)", (int)ops[i].kind, (int)ops[i].in, (int)ops[i].out);
            printf("\n");
            wrong++;
        }
        free(first);
        free(second);
        free(frame);
    }
    while (kept_count) free(kept[--kept_count]);
    printf("%d of %s programs differ between %s and %s\n", wrong, argv[3], argv[1], argv[2]);
    return wrong ? 1 : 0;
}
