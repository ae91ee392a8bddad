/* Threads that go through the stages of a job together. */
#ifndef GRADSEG_THREADS_H
#define GRADSEG_THREADS_H
#include <stdint.h>

/* A stage is `pieces` pieces of work. Piece p may begin when the pieces needs[2p] to needs[2p + 1] of the stage before are
 * done (none where the first is above the second) and all of the stages before that one. */
typedef struct {
    int32_t pieces;
    const int32_t *needs;
} gs_stage;

typedef struct gs_team gs_team;
typedef void (*gs_work)(void *context, int32_t thread, int32_t stage, int32_t piece);
typedef void (*gs_passed)(void *context, int32_t stage);

/* threads, the caller's included: threads - 1 are started. The stages' needs must stay where they are. NULL: no memory. */
gs_team *gs_team_create(int32_t threads, const gs_stage *stages, int32_t count);
/* Runs every piece of the stages from `first` to `end`. Where `passed` is given, no stage begins before the one before is
 * done, and the caller's thread calls it after each. */
void gs_team_run(gs_team *team, int32_t first, int32_t end, gs_work work, gs_passed passed, void *context);
/* From any thread: one thread of the team steps aside at the end of its piece, until gs_team_return. Comes back when it has,
 * or after some milliseconds. A team of one goes on as it is. */
void gs_team_borrow(gs_team *team);
void gs_team_return(gs_team *team);
void gs_team_destroy(gs_team *team);
#endif
