#include "threads.h"

#include <pthread.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Looks at a barrier, some tens of microseconds, before a thread sleeps: then its core is free for whoever holds up the
 * others, a thread of the team that another program has pushed aside, or that program. */
#define SPINS 1000
#define SETS 2      /* of counters: one in use, one cleared for the next stage */

typedef struct {
    _Atomic int32_t next;
    char pad[60]; /* a cache line each */
} counter;

struct gs_team {
    int32_t threads, started;
    pthread_t *ids;
    counter *counters; /* (SETS, threads) */
    _Atomic int32_t arrived, phase, sleepers, running;
    pthread_mutex_t lock, barrier;
    pthread_cond_t wake, done, passed;
    int64_t job;
    int32_t stop;
    gs_work work;
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

static void *loop(void *argument) {
    member self = *(member *)argument;
    free(argument);
    gs_team *team = self.team;
    int64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&team->lock);
        while (team->job == seen && !team->stop) pthread_cond_wait(&team->wake, &team->lock);
        const int stop = team->stop;
        seen = team->job;
        pthread_mutex_unlock(&team->lock);
        if (stop) return NULL;
        team->work(team->context, self.number);
        if (atomic_fetch_sub(&team->running, 1) == 1) {
            pthread_mutex_lock(&team->lock);
            pthread_cond_signal(&team->done);
            pthread_mutex_unlock(&team->lock);
        }
    }
}

gs_team *gs_team_create(int32_t threads) {
    gs_team *team = calloc(1, sizeof *team);
    if (!team) return NULL;
    team->threads = threads;
    pthread_mutex_init(&team->lock, NULL);
    pthread_mutex_init(&team->barrier, NULL);
    pthread_cond_init(&team->passed, NULL);
    pthread_cond_init(&team->wake, NULL);
    pthread_cond_init(&team->done, NULL);
    team->ids = calloc((size_t)threads, sizeof *team->ids);
    team->counters = calloc((size_t)threads * SETS, sizeof *team->counters);
    for (int32_t number = 1; team->ids && team->counters && number < threads; number++) {
        member *self = malloc(sizeof *self);
        if (!self) break;
        *self = (member){team, number};
        if (pthread_create(&team->ids[number], NULL, loop, self)) {
            free(self);
            break;
        }
        team->started++;
    }
    if (team->started != threads - 1) {
        gs_team_destroy(team);
        return NULL;
    }
    return team;
}

void gs_team_run(gs_team *team, gs_work work, void *context) {
    pthread_mutex_lock(&team->lock);
    for (int32_t i = 0; i < team->threads * SETS; i++) team->counters[i].next = 0;
    team->work = work;
    team->context = context;
    team->running = team->threads - 1;
    team->job++;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    work(context, 0);
    for (int32_t spins = 0; spins < SPINS && atomic_load(&team->running); spins++) relax();
    pthread_mutex_lock(&team->lock);
    while (atomic_load(&team->running)) pthread_cond_wait(&team->done, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

void gs_team_wait(gs_team *team) {
    const int32_t phase = atomic_load_explicit(&team->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->threads - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store(&team->phase, phase + 1); /* before `sleepers` is read: nobody goes to sleep unseen */
        if (atomic_load(&team->sleepers)) {
            pthread_mutex_lock(&team->barrier);
            pthread_cond_broadcast(&team->passed);
            pthread_mutex_unlock(&team->barrier);
        }
        return;
    }
    for (int32_t spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
        relax();
    }
    pthread_mutex_lock(&team->barrier);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->phase) == phase) pthread_cond_wait(&team->passed, &team->barrier);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->barrier);
}

int32_t gs_team_next(gs_team *team, int32_t thread, int32_t stage, int32_t pieces) {
    counter *now = team->counters + (ptrdiff_t)(stage % SETS) * team->threads;
    counter *later = team->counters + (ptrdiff_t)((stage + 1) % SETS) * team->threads;
    for (int32_t i = 0; i < team->threads; i++) {
        const int32_t owner = (thread + i) % team->threads;
        const int32_t first = (int32_t)((int64_t)pieces * owner / team->threads);
        const int32_t end = (int32_t)((int64_t)pieces * (owner + 1) / team->threads);
        const int32_t piece = first + atomic_fetch_add_explicit(&now[owner].next, 1, memory_order_relaxed);
        if (piece < end) return piece;
    }
    atomic_store_explicit(&later[thread].next, 0, memory_order_relaxed);
    return -1;
}

void gs_team_destroy(gs_team *team) {
    if (!team) return;
    pthread_mutex_lock(&team->lock);
    team->stop = 1;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int32_t number = 1; number <= team->started; number++) pthread_join(team->ids[number], NULL);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->wake);
    pthread_cond_destroy(&team->done);
    pthread_mutex_destroy(&team->barrier);
    pthread_cond_destroy(&team->passed);
    free(team->ids);
    free(team->counters);
    free(team);
}
