/* Programs made ready for an instruction set, and run. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "frames.h"
#include "stages.h"

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
    &gs_kernels_neon_i8mm,
#endif
#ifdef GS_NEON
    &gs_kernels_neon_dotprod,
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
    gs_stages stages;
    gs_team *team;
    int32_t threads;
    uint8_t **scratch; /* one per thread */
    const uint8_t *frame;
    int64_t frame_stride;
    const gs_resize *resize;
    const gs_repeat *repeat;
    uint8_t *spread;
    uint8_t *labels;
    int64_t *nanoseconds, since; /* since: the end of the stage before */
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* One row; `from`: its inputs. */
static void conv_row(const gs_plan *plan, int32_t index, int32_t y, const uint8_t *from) {
    const gs_program *program = &plan->program;
    const gs_op *op = &program->ops[index];
    const gs_memory *in = &program->memory[op->in], *out = &program->memory[op->out];
    const ptrdiff_t to = ((ptrdiff_t)y * op->oy + op->py) * out->row + (ptrdiff_t)op->px * out->pixel;
    const uint8_t *residual = op->residual < 0 ? NULL : program->memory[op->residual].at + to;
    program->kernels->conv(&program->steps[index].conv, from, (ptrdiff_t)op->sx * in->pixel, out->at + to + op->out_offset,
                           (ptrdiff_t)op->ox * out->pixel, residual, op->out_w, program->tensors[op->out].dtype == GS_S16);
}

/* A depthwise convolution and the 1x1 behind it, from cache to cache: two rows at a time where they share inputs. */
static void fused_rows(const gs_plan *plan, int32_t index, int32_t first, int32_t end, uint8_t *scratch) {
    const gs_program *program = &plan->program;
    const gs_op *op = &program->ops[index], *depthwise = &program->ops[program->steps[index].fused - 1];
    const gs_dw *dw = &program->steps[index].dw;
    const gs_memory *in = &program->memory[depthwise->in];
    const ptrdiff_t second = op->out_w * in->pixel;
    for (int32_t y = first; y < end;) {
        const uint8_t *from = in->at + (ptrdiff_t)y * in->row;
        if (depthwise->dy == 1 && y + 1 < end) {
            program->kernels->depthwise_pair(dw, from, in->row, 1, scratch, second, op->out_w);
            conv_row(plan, index, y++, scratch);
            conv_row(plan, index, y++, scratch + second);
        } else {
            program->kernels->depthwise(dw, from, in->row, depthwise->dy, scratch, op->out_w);
            conv_row(plan, index, y++, scratch);
        }
    }
}

static void row_of(gs_plan *plan, int32_t index, int32_t y) {
    const gs_program *program = &plan->program;
    const gs_kernels *kernels = program->kernels;
    const gs_step *step = &program->steps[index];
    const gs_op *op = &program->ops[index];
    const gs_memory *in = &program->memory[op->in], *out = op->out < 0 ? NULL : &program->memory[op->out];
    const int32_t width = program->tensors[op->in].width, height = program->tensors[op->in].height;
    const uint8_t *from = in->at ? in->at + (ptrdiff_t)y * in->row : NULL;
    switch (op->kind) {
        case GS_CONV:
            conv_row(plan, index, y,
                     in->at + ((ptrdiff_t)y * op->sy - op->pt) * in->row - (ptrdiff_t)op->pl * in->pixel);
            break;
        case GS_DEPTHWISE:
            kernels->depthwise(&step->dw, from, in->row, op->dy, out->at + (ptrdiff_t)y * out->row, width);
            break;
        case GS_UPSAMPLE:
            kernels->upsample((const int16_t *)(y ? from - in->row : from), (const int16_t *)from,
                              (const int16_t *)(y + 1 < height ? from + in->row : from), width,
                              program->tensors[op->in].channels, out->at + 2 * (ptrdiff_t)y * out->row,
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

/* One piece of a stage; the frame comes in as it is, or resized. */
static void work(void *context, int32_t thread, int32_t stage, int32_t piece) {
    gs_plan *plan = context;
    const gs_stages *stages = &plan->stages;
    const int32_t first = piece * stages->chunk[stage], rows = stages->rows[stage];
    const int32_t end = first + stages->chunk[stage] < rows ? first + stages->chunk[stage] : rows;
    const gs_memory *frame = &plan->program.memory[0];
    if (!stage && plan->resize) {
        gs_resize_rows(plan->resize, plan->frame, plan->frame_stride, frame->at + first * frame->row, frame->row, first, end,
                       (int16_t *)plan->scratch[thread]);
        return;
    }
    if (stage && plan->program.steps[stages->op[stage]].fused) {
        fused_rows(plan, stages->op[stage], first, end, plan->scratch[thread]);
        return;
    }
    for (int32_t y = first; y < end; y++) {
        if (!stage)
            memcpy(frame->at + y * frame->row, plan->frame + y * plan->frame_stride,
                   (size_t)plan->program.tensors[0].width * 3);
        else
            row_of(plan, stages->op[stage], y);
    }
}

static void spread(void *context, int32_t thread, int32_t stage, int32_t piece) {
    const gs_plan *plan = context;
    const int64_t rows = plan->repeat->out_height, pieces = plan->stages.team[stage].pieces;
    (void)thread;
    gs_resize_label_rows(plan->repeat, plan->labels, plan->spread, (int32_t)(rows * piece / pieces),
                         (int32_t)(rows * (piece + 1) / pieces));
}

static void passed(void *context, int32_t stage) {
    gs_plan *plan = context;
    const int64_t time = now();
    if (plan->stages.op[stage] >= 0) plan->nanoseconds[plan->stages.op[stage]] = time - plan->since;
    plan->since = time;
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
        problem = gs_stages_make(&plan->stages, &plan->program, threads);
    }
    if (!problem) {
        plan->team = gs_team_create(threads, plan->stages.team, plan->stages.count + 1);
        const size_t resize = gs_resize_scratch(gs_up_to(3 * tensors[0].width, 16) / 16) * sizeof(int16_t);
        if (plan->program.scratch < resize) plan->program.scratch = (resize + GS_ALIGN - 1) / GS_ALIGN * GS_ALIGN;
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

int32_t gs_load(gs_plan *plan, const struct gs_resize *resize, const uint8_t *frame, int64_t frame_stride) {
    const gs_tensor *to = &plan->program.tensors[0];
    if (resize->out_width != to->width || resize->out_height != to->height ||
        gs_resize_scratch(resize->blocks) * sizeof(int16_t) > plan->program.scratch)
        return -1;
    plan->frame = frame;
    plan->frame_stride = frame_stride;
    plan->resize = resize;
    gs_team_run(plan->team, 0, 1, work, NULL, plan);
    return 0;
}

void gs_run(gs_plan *plan, const uint8_t *frame, int64_t frame_stride, uint8_t *labels, int64_t *nanoseconds) {
    plan->frame = frame;
    plan->frame_stride = frame_stride;
    plan->resize = NULL;
    plan->labels = labels;
    plan->nanoseconds = nanoseconds;
    if (nanoseconds) memset(nanoseconds, 0, (size_t)plan->program.op_count * sizeof *nanoseconds);
    plan->since = nanoseconds ? now() : 0;
    gs_team_run(plan->team, frame ? 0 : 1, plan->stages.count, work, nanoseconds ? passed : NULL, plan);
}

void gs_spread(gs_plan *plan, const struct gs_repeat *repeat, uint8_t *out) {
    plan->repeat = repeat;
    plan->spread = out;
    gs_team_run(plan->team, plan->stages.count, plan->stages.count + 1, spread, NULL, plan);
}

void gs_borrow(gs_plan *plan) { gs_team_borrow(plan->team); }

void gs_return(gs_plan *plan) { gs_team_return(plan->team); }

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
    gs_stages_release(&plan->stages);
    gs_release(&plan->program);
    free(plan);
}
