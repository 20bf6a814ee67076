/* From stored images to rows of a batch. */

#include "images.h"

#include <stdlib.h>
#include <string.h>

uint8_t *reserve(scratch *kept, size_t size) {
    if (kept->size < size) {
        free(kept->bytes);
        kept->size = size + size / 4;
        kept->bytes = malloc(kept->size);
        if (!kept->bytes) kept->size = 0;
    }
    return kept->bytes;
}

void release(image_maker *maker) {
    jpeg_decoder_free(maker->decoder);
    free(maker->decoded.bytes);
    free(maker->resized.bytes);
    free(maker->moved.bytes);
    memset(maker, 0, sizeof *maker);
}

/* The smallest scale at which the region still has as many pixels as are wanted. */
static int eighths_for(const image_job *job, const image_task *task) {
    for (int eighths = 1; eighths < 8; eighths *= 2)
        if (job->height * eighths >= 12 * task->rows && job->width * eighths >= 12 * task->columns) return eighths;
    return 8;
}

/* The image as a window to resize; it may be decoded to `whole`, unless that is NULL. As jpeg_decode; 1 also where the
   region is not within the image. */
static int open_image(image_maker *maker, const image_task *task, const image_job *job, uint8_t *whole,
                      image_window *window) {
    const uint8_t *stored = (const uint8_t *)(intptr_t)job->source;
    if (job->top < 0 || job->left < 0 || job->height < 1 || job->width < 1) return 1;
    if (job->top + job->height > job->rows || job->left + job->width > job->columns) return 1;
    if (!job->bytes) {
        *window = (image_window){stored, 3 * (ptrdiff_t)job->columns, (int)job->rows, (int)job->columns, (double)job->top,
                                 (double)job->left, (double)job->height, (double)job->width};
        return 0;
    }
    if (!maker->decoder && !(maker->decoder = jpeg_decoder_new())) return -1;
    jpeg_region region = {(int)job->rows, (int)job->columns, (int)job->top, (int)job->left, (int)job->height,
                          (int)job->width, task->scaled ? eighths_for(job, task) : 8};
    return jpeg_decode(maker->decoder, stored, (size_t)job->bytes, &region, window, whole, &maker->decoded);
}

/* Copy uint8[rows][columns][3], moved and then flipped or not; `fill` where it has nothing. */
static void move_image(const image_task *task, const image_job *job, const image_window *from, uint8_t *to) {
    int64_t columns = task->columns, right = job->right;
    int64_t first = job->turned ? right : -right, end = columns + first; /* columns of the output that are inside */
    first = first > 0 ? first : 0, end = end < columns ? end : columns;
    const uint8_t fill[3] = {(uint8_t)task->fill, (uint8_t)(task->fill >> 8), (uint8_t)(task->fill >> 16)};
    for (int64_t row = 0; row < task->rows; row++, to += 3 * columns) {
        int64_t at = row + job->down;
        int inside = at >= 0 && at < task->rows && first < end;
        for (int64_t c = 0; c < (inside ? first : columns); c++) memcpy(to + 3 * c, fill, 3);
        if (!inside) continue;
        const uint8_t *pixels = from->pixels + at * from->stride;
        if (job->turned)
            for (int64_t c = first; c < end; c++) memcpy(to + 3 * c, pixels + 3 * (columns - 1 - c + right), 3);
        else
            memcpy(to + 3 * first, pixels + 3 * (first + right), 3 * (size_t)(end - first));
        for (int64_t c = end; c < columns; c++) memcpy(to + 3 * c, fill, 3);
    }
}

static int make_image(image_maker *maker, const image_task *task, const image_job *job, uint8_t *destination) {
    size_t size = 3 * (size_t)task->rows * (size_t)task->columns;
    uint8_t *made = task->moved ? reserve(&maker->moved, size) : destination;
    if (!made) return -1;
    int entire = job->height == task->rows && job->width == task->columns && job->height == job->rows &&
                 job->width == job->columns && !job->flip;
    image_window window;
    int failed = open_image(maker, task, job, entire ? made : NULL, &window);
    if (failed < 0) return -1;
    if (failed) memset(made, 0, size);
    if (!failed && entire && !job->bytes && !task->moved) memcpy(made, window.pixels, size);
    if (!failed && !entire &&
        resize_area(&window, made, (int)task->rows, (int)task->columns, job->flip != 0, &maker->resized))
        return -1;
    if (failed || !entire) window.pixels = made, window.stride = 3 * (ptrdiff_t)task->columns;
    if (task->moved) move_image(task, job, &window, destination);
    return 0;
}

/* Samples lie anywhere in memory: the beginning of each is fetched while the one before is made. The processor goes on
   by itself, and is slower where all of a small image is asked for. */
static void prefetch(const image_job *job) {
    const char *stored = (const char *)(intptr_t)job->source;
    int64_t size = job->bytes ? job->bytes : 3 * job->rows * job->columns;
    for (int64_t at = 0; at < size && at < 512; at += 64) __builtin_prefetch(stored + at);
}

#define JPG 0 /* of FFCV's modes */

static int64_t bytes_at(const stored_images *stored, uint64_t place) {
    int64_t low = 0, high = stored->count - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (stored->places[middle] < place)
            low = middle + 1;
        else
            high = middle;
    }
    return (int64_t)stored->sizes[low];
}

static void plan_image(image_job *job, const stored_images *stored, int64_t sample) {
    const uint8_t *record = stored->records + sample * stored->stride; /* mode, columns, rows, place */
    uint16_t size[2];
    uint64_t place;
    memcpy(size, record + 1, 4);
    memcpy(&place, record + 5, 8);
    job->source = (int64_t)(intptr_t)(stored->file + place);
    job->bytes = *record == JPG ? bytes_at(stored, place) : 0;
    job->rows = job->height = size[1];
    job->columns = job->width = size[0];
    job->top = job->left = job->flip = 0;
}

void copy_numbers(const number_task *task, const int64_t *samples, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++)
        memcpy(task->destination + 8 * i, task->records + samples[i] * task->stride, 8);
}

int make_images(image_maker *maker, const image_task *task, const int64_t *samples, int64_t first, int64_t end) {
    size_t size = 3 * (size_t)task->rows * (size_t)task->columns;
    for (int64_t i = first; task->stored && i < end; i++) plan_image(&task->jobs[i], task->stored, samples[i]);
    for (int64_t i = first; size && i < end; i++) {
        if (i + 1 < end) prefetch(&task->jobs[i + 1]);
        if (make_image(maker, task, &task->jobs[i], task->destination + size * (size_t)i)) return -1;
    }
    return 0;
}
