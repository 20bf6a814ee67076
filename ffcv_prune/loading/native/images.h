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

/* What to make of the images of a batch. */
typedef struct {
    const image_job *jobs;
    uint8_t *destination;  /* [images][rows][columns][3] */
    int64_t rows, columns; /* the region of each job is resized to these */
    int64_t scaled;        /* whether JPEG images may be decoded at a scale that is large enough */
    int64_t moved, fill;   /* whether a job's down, right and turned count; what is then seen beside the image */
} image_task;

/* What a thread needs; all zero in the beginning. */
typedef struct {
    scratch decoded, resized, moved;
    jpeg_decoder *decoder;
} image_maker;

/* Make the images first ... end - 1. 0, or -1 without memory. */
int make_images(image_maker *maker, const image_task *task, int64_t first, int64_t end);

void release(image_maker *maker);

#endif
