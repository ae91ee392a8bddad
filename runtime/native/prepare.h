/* A program with its weights packed and its memory laid out. */
#ifndef GRADSEG_PREPARE_H
#define GRADSEG_PREPARE_H
#include "kernels.h"

/* at: the first byte of pixel (0, 0); row, pixel: bytes from one to the next. */
typedef struct {
    uint8_t *at;
    ptrdiff_t row, pixel;
    int32_t buffer;
} gs_memory;

typedef struct {
    int32_t skipped; /* runs within the next operator */
    int32_t fused;   /* 1 + the operator that runs within this one, else 0 */
    int32_t rows;    /* of work */
    gs_conv conv;
    gs_dw dw;
    gs_head head;
} gs_step;

typedef struct {
    const gs_kernels *kernels;
    gs_tensor *tensors;
    gs_op *ops;
    gs_step *steps;
    gs_memory *memory;
    int32_t tensor_count, op_count;
    size_t scratch; /* bytes per thread */
    void **owned;   /* everything allocated */
    size_t owned_count, owned_room;
} gs_program;

#define GS_NO_MEMORY "not enough memory"

static inline int32_t gs_up_to(int32_t value, int32_t step) { return (value + step - 1) / step * step; }

static inline int gs_same_size(const gs_tensor *a, const gs_tensor *b) {
    return a->height == b->height && a->width == b->width && a->channels == b->channels;
}

/* NULL, or what is wrong with a program's tensors and operators. */
const char *gs_check(const gs_program *program);
/* NULL, or what is wrong (constant text, or written to `error`). Release in either case. */
const char *gs_prepare(gs_program *program, const gs_kernels *kernels, const gs_tensor *tensors, int32_t tensor_count,
                       const gs_op *ops, int32_t op_count, char *error, int32_t size);
int32_t gs_read_tensor(const gs_program *program, int32_t tensor, void *out);
void gs_release(gs_program *program);
/* 2x2 maximum of pixels of the frame: three channels, packed. */
void gs_pool_frame(const uint8_t *upper, const uint8_t *lower, const float *scale, const float *bias, uint8_t *out,
                   ptrdiff_t out_step, int32_t count);
#endif
