#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* Looks at what it waits for, some tens of microseconds, before a thread sleeps: then its core is free for whoever holds up
 * the others, a thread of the team that another program has pushed aside, or that program. */
#define SPINS 1000
#define PATIENCE_NS 3000000 /* of who borrows */

typedef struct {
    _Atomic int32_t value;
    char pad[60]; /* a cache line each */
} counter;

struct gs_team {
    int32_t threads, started, count;
    pthread_t *ids;
    const gs_stage *stages;
    counter *claimed;         /* (count, threads): how many pieces of each thread's share somebody has taken */
    counter *finished;        /* (count): pieces done */
    _Atomic uint32_t **done;  /* (count, pieces): the last job in which a piece was done */
    _Atomic int32_t sleepers; /* within a stage */
    _Atomic int32_t borrowed; /* that many of the highest numbers stand aside */
    _Atomic uint32_t job;     /* odd while one runs */
    pthread_mutex_t lock, barrier;
    pthread_cond_t wake, left, passed_on;
    int32_t inside, stop; /* under `lock`: threads at work besides the caller's */
    char *is_inside;
    int32_t first, end;
    gs_work work;
    gs_passed passed;
    void *context;
};

typedef struct {
    gs_team *team;
    int32_t number;
} member;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The caller's thread, 0, never stands aside. */
static int aside(gs_team *team, int32_t number) {
    return number && number >= team->threads - atomic_load(&team->borrowed);
}

/* ---- pieces ---- */

/* The order in which a thread takes the pieces of its share: first those that the shares beside it need, so that nobody
 * waits for them in the next stage. */
static int32_t piece_of(const gs_team *team, int32_t owner, int32_t index, int32_t first, int32_t end) {
    if (owner == team->threads - 1) return first + index;
    if (owner == 0) return end - 1 - index;
    return index % 2 ? end - 1 - index / 2 : first + index / 2;
}

/* The next piece for a thread, its own share's before the others'; -1 when all are taken. */
static int32_t claim(gs_team *team, int32_t thread, int32_t stage) {
    const int32_t pieces = team->stages[stage].pieces;
    counter *claimed = team->claimed + (ptrdiff_t)stage * team->threads;
    for (int32_t i = 0; i < team->threads; i++) {
        const int32_t owner = (thread + i) % team->threads;
        const int32_t first = (int32_t)((int64_t)pieces * owner / team->threads);
        const int32_t end = (int32_t)((int64_t)pieces * (owner + 1) / team->threads);
        if (atomic_load_explicit(&claimed[owner].value, memory_order_relaxed) >= end - first) continue;
        const int32_t index = atomic_fetch_add_explicit(&claimed[owner].value, 1, memory_order_relaxed);
        if (index < end - first) return piece_of(team, owner, index, first, end);
    }
    return -1;
}

static int complete(gs_team *team, int32_t stage) {
    return stage < team->first || atomic_load(&team->finished[stage].value) == team->stages[stage].pieces;
}

static int ready(gs_team *team, int32_t stage, int32_t piece) {
    if (stage == team->first) return 1;
    if (team->passed) return complete(team, stage - 1);
    if (!complete(team, stage - 2)) return 0;
    const int32_t *needs = team->stages[stage].needs + 2 * (ptrdiff_t)piece;
    const uint32_t job = atomic_load(&team->job);
    for (int32_t p = needs[0]; p <= needs[1]; p++)
        if (atomic_load(&team->done[stage - 1][p]) != job) return 0;
    return 1;
}

#define UNTIL(condition)                                                                                  \
    do {                                                                                                  \
        int32_t spins = 0;                                                                                \
        while (spins < SPINS && !(condition)) relax(), spins++;                                           \
        if (spins < SPINS) break;                                                                         \
        pthread_mutex_lock(&team->barrier);                                                               \
        atomic_fetch_add(&team->sleepers, 1); /* before the condition is read: nobody sleeps unseen */    \
        while (!(condition)) pthread_cond_wait(&team->passed_on, &team->barrier);                         \
        atomic_fetch_sub(&team->sleepers, 1);                                                             \
        pthread_mutex_unlock(&team->barrier);                                                             \
    } while (0)

static void finish_piece(gs_team *team, int32_t stage, int32_t piece) {
    atomic_store(&team->done[stage][piece], atomic_load(&team->job));
    atomic_fetch_add(&team->finished[stage].value, 1);
    if (atomic_load(&team->sleepers)) {
        pthread_mutex_lock(&team->barrier);
        pthread_cond_broadcast(&team->passed_on);
        pthread_mutex_unlock(&team->barrier);
    }
}

/* Takes part until no piece is left (1), or until the thread is to stand aside (0). */
static int take_part(gs_team *team, int32_t thread) {
    for (int32_t stage = team->first; stage < team->end; stage++) {
        for (;;) {
            if (aside(team, thread)) return 0;
            const int32_t piece = claim(team, thread, stage);
            if (piece < 0) break;
            UNTIL(ready(team, stage, piece));
            team->work(team->context, thread, stage, piece);
            finish_piece(team, stage, piece);
        }
        if (team->passed && !thread) {
            UNTIL(complete(team, stage));
            team->passed(team->context, stage);
        }
    }
    return 1;
}

/* ---- threads ---- */

static void *loop(void *argument) {
    member self = *(member *)argument;
    free(argument);
    gs_team *team = self.team;
    uint32_t through = 0, job; /* through: the job of which nothing is left for this thread */
    for (;;) {
        for (int32_t spins = 0; spins < SPINS && atomic_load(&team->job) - through <= 1; spins++) relax();
        pthread_mutex_lock(&team->lock);
        while (!team->stop && (!((job = atomic_load(&team->job)) & 1) || job == through || aside(team, self.number)))
            pthread_cond_wait(&team->wake, &team->lock);
        if (team->stop) {
            pthread_mutex_unlock(&team->lock);
            return NULL;
        }
        team->inside++;
        team->is_inside[self.number] = 1;
        pthread_mutex_unlock(&team->lock);
        if (take_part(team, self.number)) through = job;
        pthread_mutex_lock(&team->lock);
        team->inside--;
        team->is_inside[self.number] = 0;
        pthread_cond_broadcast(&team->left);
        pthread_mutex_unlock(&team->lock);
    }
}

static int made(gs_team *team) {
    const size_t stages = (size_t)team->count, threads = (size_t)team->threads;
    team->ids = calloc(threads, sizeof *team->ids);
    team->is_inside = calloc(threads, 1);
    team->claimed = calloc(stages * threads, sizeof *team->claimed);
    team->finished = calloc(stages, sizeof *team->finished);
    team->done = calloc(stages, sizeof *team->done);
    if (!team->ids || !team->is_inside || !team->claimed || !team->finished || !team->done) return 0;
    for (size_t i = 0; i < stages; i++) {
        team->done[i] = calloc((size_t)team->stages[i].pieces, sizeof **team->done);
        if (!team->done[i]) return 0;
    }
    for (int32_t number = 1; number < team->threads; number++) {
        member *self = malloc(sizeof *self);
        if (!self) return 0;
        *self = (member){team, number};
        if (pthread_create(&team->ids[number], NULL, loop, self)) {
            free(self);
            return 0;
        }
        team->started++;
    }
    return 1;
}

gs_team *gs_team_create(int32_t threads, const gs_stage *stages, int32_t count) {
    gs_team *team = calloc(1, sizeof *team);
    if (!team) return NULL;
    team->threads = threads;
    team->stages = stages;
    team->count = count;
    pthread_mutex_init(&team->lock, NULL);
    pthread_mutex_init(&team->barrier, NULL);
    pthread_cond_init(&team->wake, NULL);
    pthread_cond_init(&team->left, NULL);
    pthread_cond_init(&team->passed_on, NULL);
    if (made(team)) return team;
    gs_team_destroy(team);
    return NULL;
}

void gs_team_run(gs_team *team, int32_t first, int32_t end, gs_work work, gs_passed passed, void *context) {
    pthread_mutex_lock(&team->lock); /* nobody is inside: the last run waited for that */
    for (int32_t i = first * team->threads; i < end * team->threads; i++) team->claimed[i].value = 0;
    for (int32_t i = first; i < end; i++) team->finished[i].value = 0;
    team->first = first;
    team->end = end;
    team->work = work;
    team->passed = passed;
    team->context = context;
    atomic_fetch_add(&team->job, 1);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    take_part(team, 0);
    UNTIL(complete(team, end - 1));
    pthread_mutex_lock(&team->lock);
    atomic_fetch_add(&team->job, 1); /* closed: who has not come yet stays out */
    while (team->inside) pthread_cond_wait(&team->left, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

void gs_team_borrow(gs_team *team) {
    pthread_mutex_lock(&team->lock);
    const int32_t borrowed = atomic_fetch_add(&team->borrowed, 1) + 1, number = team->threads - borrowed;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += PATIENCE_NS;
    if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
    while (number > 0 && team->is_inside[number] && !pthread_cond_timedwait(&team->left, &team->lock, &until)) {}
    pthread_mutex_unlock(&team->lock);
}

void gs_team_return(gs_team *team) {
    pthread_mutex_lock(&team->lock);
    atomic_fetch_sub(&team->borrowed, 1);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
}

void gs_team_destroy(gs_team *team) {
    if (!team) return;
    pthread_mutex_lock(&team->lock);
    team->stop = 1;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int32_t number = 1; number <= team->started; number++) pthread_join(team->ids[number], NULL);
    pthread_mutex_destroy(&team->lock);
    pthread_mutex_destroy(&team->barrier);
    pthread_cond_destroy(&team->wake);
    pthread_cond_destroy(&team->left);
    pthread_cond_destroy(&team->passed_on);
    for (int32_t i = 0; team->done && i < team->count; i++) free(team->done[i]);
    free(team->done);
    free(team->finished);
    free(team->claimed);
    free(team->is_inside);
    free(team->ids);
    free(team);
}
