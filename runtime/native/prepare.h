/* A program with its weights packed and its memory laid out. */
#ifndef GRADSEG_PREPARE_H
#define GRADSEG_PREPARE_H
#include "program.h"

/* NULL, or what is wrong (constant text, or written to `error`). Release in either case. */
const char *gs_prepare(gs_program *program, const gs_kernels *kernels, const gs_tensor *tensors, int32_t tensor_count,
                       const gs_op *ops, int32_t op_count, char *error, int32_t size);
int32_t gs_read_tensor(const gs_program *program, int32_t tensor, void *out);
void gs_release(gs_program *program);
/* 2x2 maximum of pixels of the frame: three channels, packed. */
void gs_pool_frame(const uint8_t *upper, const uint8_t *lower, const float *scale, const float *bias, uint8_t *out,
                   ptrdiff_t out_step, int32_t count);
#endif
