/* What the files of the native code share. */

#ifndef FFCV_PRUNE_NATIVE_H
#define FFCV_PRUNE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* Memory that a thread keeps from call to call. */
typedef struct {
    uint8_t *bytes;
    size_t size;
} scratch;

/* At least `size` bytes, whose content is undefined; NULL without memory. */
uint8_t *reserve(scratch *kept, size_t size);

/* A part of an image. */
typedef struct {
    const uint8_t *pixels; /* [rows][columns][3] */
    ptrdiff_t stride;      /* bytes from one row to the next */
    int rows, columns;
    double top, left, height, width; /* the part, in pixels; it may begin and end between two of them */
} image_window;

/* Resize the window to uint8[rows][columns][3], mirrored left to right if `flip`. 0, or -1 without memory. */
int resize_area(const image_window *source, uint8_t *destination, int rows, int columns, int flip, scratch *kept);

/* A region of a stored image, in pixels, and the scale at which it is decoded: eighths / 8, of 1 ... 8. */
typedef struct {
    int rows, columns; /* of the stored image */
    int top, left, height, width, eighths;
} jpeg_region;

typedef struct jpeg_decoder jpeg_decoder;

jpeg_decoder *jpeg_decoder_new(void); /* NULL without memory */
void jpeg_decoder_free(jpeg_decoder *decoder);

/* Whether the libjpeg that was found works with what this was built for, on an example. */
int jpeg_is_usable(void);

/* Decode the region. The window says where the pixels are: in `whole`, if the region is the whole image, else in `kept`.
   Rows that cannot be decoded are black. 0, 1 if nothing can be decoded, or -1 without memory. */
int jpeg_decode(jpeg_decoder *decoder, const uint8_t *bytes, size_t size, const jpeg_region *region,
                image_window *window, uint8_t *whole, scratch *kept);

/* One direction of a resize: output o is the sum of `taps` inputs, from first[o] on, times weight[o][0 ... taps - 1]. */
typedef struct {
    int outputs, taps;
    int32_t *first;
    float *weight;
} axis;

/* A resize, and room to work in. */
typedef struct {
    const uint8_t *pixels; /* [.][n], of this stride */
    ptrdiff_t stride;
    size_t n;
    axis down, right;
    int grows; /* whether there are more rows than before */
    uint8_t *destination;
    uint8_t *line[3];   /* sizeof(float) bytes for each of n + 16, and of 3 * right.outputs + 16 numbers twice */
    uint8_t *table;     /* 24 bytes for each weight of right, and 64 more */
} resize_plan;

/* The same by the instructions of AVX2, in whole numbers. 0, or -1 if this processor, or this plan, is not for it. */
int resize_avx2(const resize_plan *plan);

#endif
