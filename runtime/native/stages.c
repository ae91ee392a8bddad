#include "stages.h"

#include <stdlib.h>
#include <string.h>

#define PIECES_PER_THREAD 16 /* so that a thread that is held up leaves little behind */
#define FRAME_PIECES 4       /* the same for the frame and the labels: rows share work with those above them */

/* Rows of a tensor's memory that a piece reads or writes. */
typedef struct {
    int32_t buffer, low, high, writes;
} touch;

static touch touched(const gs_program *program, int32_t tensor, int32_t low, int32_t high, int32_t writes) {
    return (touch){program->memory[tensor].buffer, low, high, writes};
}

/* What the rows from `first` to `last` of an operator's work touch; returns how many of the three there are. */
static int touches(const gs_program *program, int32_t index, int32_t first, int32_t last, touch *of) {
    if (index < 0) {
        of[0] = touched(program, 0, first, last, 1);
        return 1;
    }
    const gs_op *op = &program->ops[index];
    const int32_t fused = program->steps[index].fused;
    const gs_op *reads = fused ? &program->ops[fused - 1] : op;
    int count = 0;
    switch (reads->kind) {
        case GS_CONV:
            of[count++] = touched(program, op->in, first * op->sy - op->pt, last * op->sy - op->pt + (op->kh - 1) * op->dy, 0);
            break;
        case GS_DEPTHWISE:
            of[count++] = touched(program, reads->in, first - reads->dy, last + reads->dy, 0);
            break;
        case GS_UPSAMPLE:
            of[count++] = touched(program, op->in, first - 1, last + 1, 0);
            break;
        case GS_POOL:
            of[count++] = touched(program, op->in, 2 * first, 2 * last + 1, 0);
            break;
        default:
            of[count++] = touched(program, op->in, first, last, 0);
            break;
    }
    if (op->kind == GS_HEAD) return count;
    int32_t low = first, high = last;
    if (op->kind == GS_CONV) low = first * op->oy + op->py, high = last * op->oy + op->py;
    if (op->kind == GS_UPSAMPLE) low = 2 * first, high = 2 * last + 1;
    of[count++] = touched(program, op->out, low, high, 1);
    if (op->residual >= 0) of[count++] = touched(program, op->residual, low, high, 0);
    return count;
}

static int piece_touches(const gs_stages *stages, const gs_program *program, int32_t stage, int32_t piece, touch *of) {
    const int32_t first = piece * stages->chunk[stage], end = first + stages->chunk[stage], rows = stages->rows[stage];
    return touches(program, stages->op[stage], first, (end < rows ? end : rows) - 1, of);
}

/* Whether two pieces of work may not change places: one writes what the other touches. */
static int ordered(const touch *a, int a_count, const touch *b, int b_count) {
    for (int i = 0; i < a_count; i++)
        for (int j = 0; j < b_count; j++)
            if (a[i].buffer == b[j].buffer && (a[i].writes || b[j].writes) && a[i].low <= b[j].high && b[j].low <= a[i].high)
                return 1;
    return 0;
}

static void find_needs(const gs_stages *stages, const gs_program *program, int32_t stage, int32_t *needs) {
    touch here[3], before[3];
    for (int32_t piece = 0; piece < stages->team[stage].pieces; piece++) {
        const int here_count = piece_touches(stages, program, stage, piece, here);
        int32_t first = 0, last = -1;
        for (int32_t p = 0; p < stages->team[stage - 1].pieces; p++) {
            const int before_count = piece_touches(stages, program, stage - 1, p, before);
            if (!ordered(here, here_count, before, before_count)) continue;
            if (last < 0) first = p;
            last = p;
        }
        needs[2 * piece] = first;
        needs[2 * piece + 1] = last;
    }
}

const char *gs_stages_make(gs_stages *stages, const gs_program *program, int32_t threads) {
    const size_t most = (size_t)program->op_count + 2;
    stages->team = calloc(most, sizeof *stages->team);
    stages->op = calloc(most, sizeof *stages->op);
    stages->rows = calloc(most, sizeof *stages->rows);
    stages->chunk = calloc(most, sizeof *stages->chunk);
    stages->needs = calloc(most, sizeof *stages->needs);
    if (!stages->team || !stages->op || !stages->rows || !stages->chunk || !stages->needs) return GS_NO_MEMORY;
    for (int32_t index = -1; index < program->op_count; index++) {
        if (index >= 0 && program->steps[index].skipped) continue;
        const int32_t stage = stages->count++;
        const int32_t rows = index < 0 ? program->tensors[0].height : program->steps[index].rows;
        const int32_t chunk = rows / (threads * (index < 0 ? FRAME_PIECES : PIECES_PER_THREAD));
        stages->op[stage] = index;
        stages->rows[stage] = rows;
        stages->chunk[stage] = chunk < 1 ? 1 : chunk;
        stages->team[stage].pieces = (rows + stages->chunk[stage] - 1) / stages->chunk[stage];
        if (!stage) continue;
        int32_t *needs = calloc(2 * (size_t)stages->team[stage].pieces, sizeof *needs);
        if (!needs) return GS_NO_MEMORY;
        find_needs(stages, program, stage, needs);
        stages->needs[stage] = needs;
        stages->team[stage].needs = needs;
    }
    stages->team[stages->count].pieces = threads * FRAME_PIECES;
    return NULL;
}

void gs_stages_release(gs_stages *stages) {
    for (int32_t stage = 0; stages->needs && stage < stages->count; stage++) free(stages->needs[stage]);
    free(stages->needs);
    free(stages->chunk);
    free(stages->rows);
    free(stages->op);
    free(stages->team);
    memset(stages, 0, sizeof *stages);
}
