/* A program as the library holds it: its tensors and operators, and what preparing makes of them. */
#ifndef GRADSEG_PROGRAM_H
#define GRADSEG_PROGRAM_H
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
#endif
