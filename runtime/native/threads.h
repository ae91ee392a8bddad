/* A team of threads that works through numbered pieces; the caller is one of them. */
#ifndef GRADSEG_THREADS_H
#define GRADSEG_THREADS_H
#include <stdint.h>

typedef struct gs_team gs_team;
typedef void (*gs_work)(void *context, int32_t thread);

gs_team *gs_team_create(int32_t threads);
/* Every thread calls work(context, its number) once; returns when all have. */
void gs_team_run(gs_team *team, gs_work work, void *context);
/* Within `work`: waits until all threads have come here. */
void gs_team_wait(gs_team *team);
/* Within `work`, between two waits: the next of this thread's pieces, then of the others'; -1 when none is left.
 * The pieces 0 .. pieces - 1 are dealt in one run to each thread, so that the same thread meets the same rows again. */
int32_t gs_team_next(gs_team *team, int32_t thread, int32_t stage, int32_t pieces);
void gs_team_destroy(gs_team *team);
#endif
