/* How images are asked for. `loading/native_code.py` has the same structures as numpy's types. */

#ifndef FFCV_PRUNE_IMAGES_H
#define FFCV_PRUNE_IMAGES_H

#include "native.h"

/* What to make of one stored image. */
typedef struct {
    int64_t source, bytes; /* address; bytes of a JPEG image, 0 for raw pixels */
    int64_t rows, columns; /* of the stored image */
    int64_t top, left, height, width;
    int64_t flip, down, right, turned;
} image_job;

/* Where a field's images are stored. */
typedef struct {
    const uint8_t *file, *records; /* records: FFCV's, of sample i at records + i * stride */
    int64_t stride;
    const uint64_t *places, *sizes; /* of all that was allocated in the file, in the order of the places */
    int64_t count;
} stored_images;

/* What to make of the images of a batch. */
typedef struct {
    image_job *jobs;
    const stored_images *stored; /* the jobs are of whole images, and not filled up to `flip`; or NULL */
    uint8_t *destination;  /* [images][rows][columns][3] */
    int64_t rows, columns; /* the region of each job is resized to these */
    int64_t scaled;        /* whether JPEG images may be decoded at a scale that is large enough */
    int64_t moved, fill;   /* whether a job's down, right and turned count; what is then seen beside the image */
} image_task;

/* Numbers of 8 bytes that are copied as they are stored: of sample i, the one at records + i * stride. */
typedef struct {
    const uint8_t *records;
    int64_t stride;
    uint8_t *destination; /* [samples][8] */
} number_task;

/* What to make of the samples of a batch, `piece` of them at a time. */
typedef struct {
    const image_task *images;
    const number_task *numbers;
    int64_t image_count, number_count, piece;
} batch_tasks;

/* What a thread needs; all zero in the beginning. */
typedef struct {
    scratch decoded, resized, moved;
    jpeg_decoder *decoder;
} image_maker;

/* Make the images first ... end - 1, of these samples. 0, or -1 without memory. */
int make_images(image_maker *maker, const image_task *task, const int64_t *samples, int64_t first, int64_t end);

void copy_numbers(const number_task *task, const int64_t *samples, int64_t first, int64_t end);

void release(image_maker *maker);

#endif
