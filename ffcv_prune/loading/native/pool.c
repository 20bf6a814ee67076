/* Threads that make the images of several batches side by side.

   A batch is taken piece by piece, by whichever thread is free, and the next one is begun when no piece is left: no
   thread waits for the slowest, all work on the batch that is needed first, and a core that has something else to do
   delays but its own piece. None of it needs Python's lock. */

#include "checksum.h"
#include "images.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    const batch_tasks *tasks;
    int64_t samples, next, left; /* `next` is the first sample that nobody has taken, `left` are not yet made */
    const int64_t *ids; /* of the samples */
    const stored_samples *stored; /* where they are checked; or NULL */
    int failed, damaged;
} batch;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t work, news;
    int threads, ends, woken;
    int64_t submitted, taken; /* batches, by number: those from `taken` on have samples that nobody has taken */
    int64_t slots;
    batch *batches; /* [slots], a ring */
    pthread_t thread[];
} pool;

static void make_piece(pool *p, image_maker *maker, batch *b) {
    const batch_tasks *tasks = b->tasks;
    int64_t first = b->next, end = first + tasks->piece < b->samples ? first + tasks->piece : b->samples;
    b->next = end;
    if (end == b->samples) p->taken++;
    pthread_mutex_unlock(&p->lock);
    int failed = 0, damaged = 0;
    if (b->stored) damaged = !check_samples(b->stored, b->ids + first, end - first); /* near then for decoding */
    for (int t = 0; t < tasks->number_count; t++) copy_numbers(&tasks->numbers[t], b->ids, first, end);
    for (int t = 0; t < tasks->image_count && !failed; t++) failed = make_images(maker, &tasks->images[t], b->ids, first, end);
    pthread_mutex_lock(&p->lock);
    b->failed |= failed;
    b->damaged |= damaged;
    b->left -= end - first;
    if (!b->left) pthread_cond_broadcast(&p->news);
}

static void *work(void *argument) {
    pool *p = argument;
    image_maker maker = {0};
    pthread_mutex_lock(&p->lock);
    while (!p->ends)
        if (p->taken < p->submitted)
            make_piece(p, &maker, &p->batches[p->taken % p->slots]);
        else
            pthread_cond_wait(&p->work, &p->lock);
    pthread_mutex_unlock(&p->lock);
    release(&maker);
    return NULL;
}

/* End the threads. What they have begun is finished. */
EXPORT void ffcv_prune_end(pool *p) {
    pthread_mutex_lock(&p->lock);
    p->ends = 1;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int t = 0; t < p->threads; t++) pthread_join(p->thread[t], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->news);
    free(p->batches);
    free(p);
}

/* So many threads, for at most so many batches at a time. NULL where there are none to be had. */
EXPORT pool *ffcv_prune_begin(int threads, int64_t slots) {
    pool *p = calloc(1, sizeof *p + sizeof(pthread_t) * (size_t)threads);
    if (!p) return NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&p->news, &clock);
    pthread_condattr_destroy(&clock);
    p->slots = slots;
    p->batches = calloc((size_t)slots, sizeof *p->batches);
    sigset_t all, before;
    sigfillset(&all); /* Python's handlers are for its own threads, but those of a crash for any */
    const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    for (size_t c = 0; c < sizeof crashes / sizeof *crashes; c++) sigdelset(&all, crashes[c]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (p->batches)
        while (p->threads < threads && pthread_create(&p->thread[p->threads], NULL, work, p) == 0) p->threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (p->threads == threads) return p;
    ffcv_prune_end(p);
    return NULL;
}

/* Add a batch; its tasks, their jobs and their images belong to the pool until it is made, and so do the ids of its
   samples. */
EXPORT void ffcv_prune_submit(pool *p, const batch_tasks *tasks, int64_t samples, const int64_t *ids,
                              const stored_samples *stored) {
    pthread_mutex_lock(&p->lock);
    p->batches[p->submitted++ % p->slots] = (batch){tasks, samples, 0, samples, ids, stored, 0, 0};
    int64_t pieces = (samples + tasks->piece - 1) / tasks->piece;
    for (int64_t t = 0; t < pieces && t < p->threads; t++) pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

/* How many batches were added. To be asked by the thread that adds them. */
EXPORT int64_t ffcv_prune_submitted(const pool *p) { return p->submitted; }

/* The number of the batch that is being made: of those before it, no sample is left that nobody has taken. */
EXPORT int64_t ffcv_prune_taken(pool *p) {
    pthread_mutex_lock(&p->lock);
    int64_t taken = p->taken;
    pthread_mutex_unlock(&p->lock);
    return taken;
}

/* Wait until batch `number` is made, or for `ffcv_prune_wake`, or for a second: Python may have a signal to answer.
   1, 2 if a sample is not what was written, 0 if it is not made yet, or -1 without memory. */
EXPORT int ffcv_prune_wait(pool *p, int64_t number) {
    pthread_mutex_lock(&p->lock);
    batch *b = &p->batches[number % p->slots];
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    while (!p->woken && (number >= p->submitted || b->left))
        if (pthread_cond_timedwait(&p->news, &p->lock, &until)) break;
    p->woken = 0;
    int made = number < p->submitted && !b->left, result = b->failed ? -1 : b->damaged ? 2 : 1;
    pthread_mutex_unlock(&p->lock);
    return made ? result : 0;
}

/* End the waiting, or the next one. */
EXPORT void ffcv_prune_wake(pool *p) {
    pthread_mutex_lock(&p->lock);
    p->woken = 1;
    pthread_cond_broadcast(&p->news);
    pthread_mutex_unlock(&p->lock);
}

/* Forget what no thread has begun, wait for what some have, and count batches from 0 again. */
EXPORT void ffcv_prune_clear(pool *p) {
    pthread_mutex_lock(&p->lock);
    for (; p->taken < p->submitted; p->taken++) {
        batch *b = &p->batches[p->taken % p->slots];
        b->left -= b->samples - b->next;
        b->next = b->samples;
    }
    for (int64_t s = 0; s < p->slots; s++)
        while (p->batches[s].left) pthread_cond_wait(&p->news, &p->lock);
    p->submitted = p->taken = p->woken = 0;
    pthread_mutex_unlock(&p->lock);
}

/* Make images in the thread that calls. 0, or -1 without memory. */
EXPORT int ffcv_prune_make(const image_task *task, int64_t first, int64_t end) {
    image_maker maker = {0};
    int failed = make_images(&maker, task, NULL, first, end);
    release(&maker);
    return failed;
}

/* CRC-32C of some bytes, for tests: `way` is that of crc32c_by. 0 where this processor has no such way, else 1. */
EXPORT int ffcv_prune_crc32c(int way, const uint8_t *bytes, int64_t size, uint32_t *crc) {
    return crc32c_by(way, bytes, (size_t)size, crc);
}

/* Whether this was built from the files that the caller has, whose structures take so many bytes, and for the libjpeg that
   was found. */
EXPORT int ffcv_prune_works(const int64_t *bytes) {
    const size_t own[] = {sizeof(image_job), sizeof(stored_images), sizeof(image_task), sizeof(number_task),
                          sizeof(batch_tasks), sizeof(stored_field), sizeof(stored_samples)};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (bytes[i] != (int64_t)own[i]) return 0;
    return jpeg_is_usable();
}
