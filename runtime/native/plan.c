/* Programs made ready for an instruction set, and run. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "prepare.h"
#include "threads.h"

#define PIECES_PER_THREAD 16 /* so that a thread that is held up leaves little behind */

static const gs_kernels *const ALL[] = {
#if defined(__x86_64__)
    &gs_kernels_avx512,
#endif
#ifdef GS_AVX_VNNI
    &gs_kernels_avxvnni,
#endif
#if defined(__x86_64__)
    &gs_kernels_avx2,
#endif
#ifdef GS_NEON_I8MM
    &gs_kernels_i8mm,
#endif
#ifdef GS_NEON
    &gs_kernels_dotprod,
#endif
    &gs_kernels_scalar,
};

/* The scalar kernels are what the others are compared with, hundreds of times slower: only by name. */
static const gs_kernels *kernels_for(const char *wanted) {
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++)
        if ((wanted ? !strcmp(wanted, ALL[i]->name) : ALL[i] != &gs_kernels_scalar) && ALL[i]->available()) return ALL[i];
    return NULL;
}

int32_t gs_abi(void) { return GS_ABI; }

const char *gs_isa(const char *wanted) {
    const gs_kernels *found = kernels_for(wanted);
    return found ? found->name : NULL;
}

struct gs_plan {
    gs_program program;
    gs_team *team;
    int32_t threads;
    uint8_t **scratch; /* one per thread */
    const uint8_t *frame;
    int64_t frame_stride;
    uint8_t *labels;
    int64_t *nanoseconds;
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void copy_row(gs_plan *plan, int32_t y) {
    const gs_memory *frame = &plan->program.memory[0];
    memcpy(frame->at + (ptrdiff_t)y * frame->row, plan->frame + (int64_t)y * plan->frame_stride,
           (size_t)plan->program.tensors[0].width * 3);
}

static void conv_row(gs_plan *plan, const gs_step *step, const gs_op *op, int32_t y, uint8_t *scratch) {
    const gs_program *program = &plan->program;
    const gs_memory *in = &program->memory[op->in], *out = &program->memory[op->out];
    const uint8_t *from;
    const ptrdiff_t to = ((ptrdiff_t)y * op->oy + op->py) * out->row + (ptrdiff_t)op->px * out->pixel;
    const uint8_t *residual = op->residual < 0 ? NULL : program->memory[op->residual].at + to;
    if (step->fused) { /* the depthwise convolution's row goes from cache to cache */
        const gs_op *first = &program->ops[step->fused - 1];
        const gs_memory *source = &program->memory[first->in];
        program->kernels->depthwise(&step->dw, source->at + (ptrdiff_t)y * source->row, source->row, first->dy, scratch,
                                    op->out_w);
        from = scratch;
    } else {
        from = in->at + ((ptrdiff_t)y * op->sy - op->pt) * in->row - (ptrdiff_t)op->pl * in->pixel;
    }
    const int32_t s16 = program->tensors[op->out].dtype == GS_S16;
    program->kernels->conv(&step->conv, from, (ptrdiff_t)op->sx * in->pixel, out->at + to + op->out_offset,
                           (ptrdiff_t)op->ox * out->pixel, residual, op->out_w, s16);
}

static void row_of(gs_plan *plan, int32_t index, int32_t y, uint8_t *scratch) {
    const gs_program *program = &plan->program;
    const gs_kernels *kernels = program->kernels;
    const gs_step *step = &program->steps[index];
    const gs_op *op = &program->ops[index];
    const gs_memory *in = &program->memory[op->in], *out = op->out < 0 ? NULL : &program->memory[op->out];
    const int32_t width = program->tensors[op->in].width, height = program->tensors[op->in].height;
    const uint8_t *from = in->at ? in->at + (ptrdiff_t)y * in->row : NULL;
    switch (op->kind) {
        case GS_CONV:
            conv_row(plan, step, op, y, scratch);
            break;
        case GS_DEPTHWISE:
            kernels->depthwise(&step->dw, from, in->row, op->dy, out->at + (ptrdiff_t)y * out->row, width);
            break;
        case GS_UPSAMPLE:
            kernels->upsample((const int16_t *)(y ? from - in->row : from), (const int16_t *)from,
                              (const int16_t *)(y + 1 < height ? from + in->row : from), width,
                              program->tensors[op->in].channels, (int16_t *)scratch, out->at + 2 * (ptrdiff_t)y * out->row,
                              out->at + (2 * (ptrdiff_t)y + 1) * out->row);
            break;
        case GS_POOL: {
            const uint8_t *upper = in->at + 2 * (ptrdiff_t)y * in->row;
            uint8_t *to = out->at + (ptrdiff_t)y * out->row + op->out_offset;
            if (op->in == 0)
                gs_pool_frame(upper, upper + in->row, op->scale, op->bias, to, out->pixel, op->out_w);
            else
                kernels->pool(upper, upper + in->row, program->tensors[op->in].channels, step->conv.scale, step->conv.bias,
                              to, out->pixel, op->out_w);
            break;
        }
        case GS_HEAD: {
            const int wide = step->head.positions == 4 ? 2 : 1;
            uint8_t *labels = plan->labels + (ptrdiff_t)wide * y * wide * width;
            kernels->head(&step->head, from, width, labels, labels + wide * width);
            break;
        }
        case GS_ADD:
            kernels->add(from, program->memory[op->residual].at + (ptrdiff_t)y * program->memory[op->residual].row,
                         op->scale[0], op->bias[0], op->residual_scale, out->at + (ptrdiff_t)y * out->row,
                         width * program->tensors[op->in].channels);
            break;
    }
}

/* Stage 0 copies the frame in, stage i + 1 is operator i. */
static void work(void *context, int32_t thread) {
    gs_plan *plan = context;
    const gs_program *program = &plan->program;
    int64_t start = plan->nanoseconds && !thread ? now() : 0;
    int32_t stage = 0;
    for (int32_t index = -1; index < program->op_count; index++) {
        if (index >= 0 && program->steps[index].skipped) {
            if (plan->nanoseconds && !thread) plan->nanoseconds[index] = 0;
            continue;
        }
        const int32_t rows = index < 0 ? program->tensors[0].height : program->steps[index].rows;
        int32_t chunk = rows / (plan->threads * PIECES_PER_THREAD);
        if (chunk < 1) chunk = 1;
        const int32_t pieces = (rows + chunk - 1) / chunk;
        int32_t piece;
        while ((piece = gs_team_next(plan->team, thread, stage, pieces)) >= 0) {
            const int32_t end = (piece + 1) * chunk < rows ? (piece + 1) * chunk : rows;
            for (int32_t y = piece * chunk; y < end; y++) {
                if (index < 0)
                    copy_row(plan, y);
                else
                    row_of(plan, index, y, plan->scratch[thread]);
            }
        }
        stage++;
        gs_team_wait(plan->team);
        if (plan->nanoseconds && !thread) {
            const int64_t end = now();
            if (index >= 0) plan->nanoseconds[index] = end - start;
            start = end;
        }
    }
}

gs_plan *gs_create(const gs_tensor *tensors, int32_t tensor_count, const gs_op *ops, int32_t op_count, int32_t threads,
                   const char *isa, char *error, int32_t size) {
    const gs_kernels *kernels = kernels_for(isa);
    if (!kernels) {
        snprintf(error, (size_t)size, "no kernels for this CPU%s%s", isa ? " by the name of " : "", isa ? isa : "");
        return NULL;
    }
    if (threads < 1 || threads > 1024) {
        snprintf(error, (size_t)size, "%d threads: expected 1 to 1024", (int)threads);
        return NULL;
    }
    gs_plan *plan = calloc(1, sizeof *plan);
    const char *problem = plan ? gs_prepare(&plan->program, kernels, tensors, tensor_count, ops, op_count, error, size)
                               : "not enough memory";
    if (!problem) {
        plan->threads = threads;
        plan->team = gs_team_create(threads);
        plan->scratch = calloc((size_t)threads, sizeof *plan->scratch);
        for (int32_t i = 0; plan->scratch && i < threads; i++) {
            plan->scratch[i] = aligned_alloc(GS_ALIGN, plan->program.scratch);
            if (!plan->scratch[i]) problem = "not enough memory";
        }
        if (!plan->team || !plan->scratch) problem = "not enough memory or threads";
    }
    if (problem) {
        if (problem != error) snprintf(error, (size_t)size, "%s", problem);
        gs_destroy(plan);
        return NULL;
    }
    return plan;
}

void gs_run(gs_plan *plan, const uint8_t *frame, int64_t frame_stride, uint8_t *labels, int64_t *nanoseconds) {
    plan->frame = frame;
    plan->frame_stride = frame_stride;
    plan->labels = labels;
    plan->nanoseconds = nanoseconds;
    gs_team_run(plan->team, work, plan);
}

int32_t gs_read(const gs_plan *plan, int32_t tensor, void *out) {
    return gs_read_tensor(&plan->program, tensor, out);
}

int64_t gs_peak(int32_t kind, int64_t rounds) {
    const gs_kernels *kernels = kernels_for(NULL);
    return kernels ? kernels->peak(kind, rounds) : 0;
}

void gs_destroy(gs_plan *plan) {
    if (!plan) return;
    gs_team_destroy(plan->team);
    for (int32_t i = 0; plan->scratch && i < plan->threads; i++) free(plan->scratch[i]);
    free(plan->scratch);
    gs_release(&plan->program);
    free(plan);
}
