/* A program cut into pieces of work, and which of them wait for which. */
#ifndef GRADSEG_STAGES_H
#define GRADSEG_STAGES_H
#include "prepare.h"
#include "threads.h"

/* Stage 0 brings the frame in, the others are operators, in order; team[s] has `rows[s]` rows in pieces of `chunk[s]`.
 * team[count] is one more, for labels at another size, that only runs alone. */
typedef struct {
    int32_t count;
    gs_stage *team;
    int32_t *op, *rows, *chunk; /* op: -1 for stage 0 */
    int32_t **needs;
} gs_stages;

/* NULL, or GS_NO_MEMORY. Release in either case. */
const char *gs_stages_make(gs_stages *stages, const gs_program *program, int32_t threads);
void gs_stages_release(gs_stages *stages);
#endif
