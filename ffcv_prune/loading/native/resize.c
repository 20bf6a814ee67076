/* Area resize of an RGB image, uint8 in and out: what OpenCV's INTER_AREA makes, to at most 1 of 255.

   The resize is separable: each output row is a weighted mean of input rows, each output pixel one of pixels of such a
   row. Rows are averaged first where their number shrinks, and last where it grows: the columns, the dearer step, have
   then fewer rows to go through. Sums are in float, and rounded once. A flip costs nothing: the outputs of the axis
   are numbered backwards. */

#include "native.h"

#include <math.h>
#include <string.h>

/* The inputs first ... last that overlap with output o of the window [start, start + length) of the inputs. */
static void overlap(int inputs, double start, double length, int outputs, int o, double bounds[2], int *first,
                    int *last) {
    double step = length / outputs;
    bounds[0] = start + o * step;
    bounds[1] = o + 1 < outputs ? bounds[0] + step : start + length;
    *last = (int)ceil(bounds[1]) - 1;
    *last = *last < inputs ? *last : inputs - 1;
    *first = (int)bounds[0] < *last ? (int)bounds[0] : *last;
}

static int area_taps(int inputs, double start, double length, int outputs) {
    double bounds[2];
    int first, last, most = 1;
    for (int o = 0; o < outputs; o++) {
        overlap(inputs, start, length, outputs, o, bounds, &first, &last);
        most = last - first + 1 > most ? last - first + 1 : most;
    }
    return most;
}

/* Each output is the mean over its share of the window. */
static void area_axis(axis *a, int inputs, double start, double length) {
    double bounds[2];
    int first, last;
    for (int o = 0; o < a->outputs; o++) {
        float *weight = a->weight + (size_t)o * a->taps, sum = 0;
        overlap(inputs, start, length, a->outputs, o, bounds, &first, &last);
        first = first < inputs - a->taps ? first : inputs - a->taps; /* what a weight of 0 reads is there, too */
        a->first[o] = first;
        for (int t = 0; t < a->taps; t++) {
            double low = first + t > bounds[0] ? first + t : bounds[0];
            double high = first + t + 1 < bounds[1] ? first + t + 1 : bounds[1];
            sum += weight[t] = high > low ? (float)(high - low) : 0;
        }
        for (int t = 0; t < a->taps; t++) weight[t] /= sum;
    }
}

static int linear_taps(double length) { return length > 1 ? 2 : 1; }

/* OpenCV's INTER_AREA where a side grows, in its own arithmetic: linear from one input to the next, but only in the
   outputs that lie across their border. */
static void linear_axis(axis *a, int inputs) {
    double inverse = (double)a->outputs / inputs, step = 1 / inverse;
    for (int o = 0; o < a->outputs; o++) {
        int at = (int)floor(o * step);
        float share = (float)((o + 1) - (at + 1) * inverse);
        share = share <= 0 ? 0 : share - floorf(share);
        if (at >= inputs - 1) at = inputs - 1, share = 0;
        int first = at < inputs - a->taps ? at : inputs - a->taps;
        a->first[o] = first;
        float *weight = a->weight + (size_t)o * a->taps;
        for (int t = 0; t < a->taps; t++) weight[t] = first + t == at ? 1 - share : first + t == at + 1 ? share : 0;
    }
}

static void mirror(axis *a) {
    for (int o = 0, p = a->outputs - 1; o < p; o++, p--) {
        int32_t first = a->first[o];
        a->first[o] = a->first[p], a->first[p] = first;
        for (int t = 0; t < a->taps; t++) {
            float *one = a->weight + (size_t)o * a->taps + t, *other = a->weight + (size_t)p * a->taps + t, weight = *one;
            *one = *other, *other = weight;
        }
    }
}

static uint8_t rounded(float value) { return (uint8_t)(int)(value + 0.5f); }

/* The columns of a row, float[.][3], to uint8[outputs][3], or to float[outputs][3]. */
static void columns_of(const axis *a, const float *row, uint8_t *bytes, float *floats) {
    for (int o = 0; o < a->outputs; o++) {
        const float *pixel = row + 3 * (size_t)a->first[o], *weight = a->weight + (size_t)o * a->taps;
        float red = 0, green = 0, blue = 0;
        for (int t = 0; t < a->taps; t++) {
            red += weight[t] * pixel[3 * t];
            green += weight[t] * pixel[3 * t + 1];
            blue += weight[t] * pixel[3 * t + 2];
        }
        if (floats)
            floats[3 * o] = red, floats[3 * o + 1] = green, floats[3 * o + 2] = blue;
        else
            bytes[3 * o] = rounded(red), bytes[3 * o + 1] = rounded(green), bytes[3 * o + 2] = rounded(blue);
    }
}

static void shrink_rows(const resize_plan *p) {
    float *sum = (float *)p->line[0];
    for (int o = 0; o < p->down.outputs; o++) {
        const uint8_t *row = p->pixels + p->down.first[o] * p->stride;
        const float *weight = p->down.weight + (size_t)o * p->down.taps;
        for (size_t x = 0; x < p->n; x++) sum[x] = weight[0] * row[x];
        for (int t = 1; t < p->down.taps; t++) {
            row += p->stride;
            for (size_t x = 0; x < p->n; x++) sum[x] += weight[t] * row[x];
        }
        columns_of(&p->right, sum, p->destination + 3 * (size_t)p->right.outputs * o, NULL);
    }
}

static void grow_rows(const resize_plan *p) {
    size_t m = 3 * (size_t)p->right.outputs;
    float *line = (float *)p->line[0];
    int done = -1; /* row r is in line[1 + r % 2], up to this one */
    for (int o = 0; o < p->down.outputs; o++) {
        int first = p->down.first[o], last = first + p->down.taps - 1;
        for (int r = done < first ? first : done + 1; r <= last; done = r++) {
            const uint8_t *row = p->pixels + r * p->stride;
            for (size_t x = 0; x < p->n; x++) line[x] = row[x];
            columns_of(&p->right, line, NULL, (float *)p->line[1 + r % 2]);
        }
        const float *one = (float *)p->line[1 + first % 2], *two = (float *)p->line[1 + last % 2];
        float share = p->down.taps > 1 ? p->down.weight[2 * o + 1] : 0;
        uint8_t *out = p->destination + m * o;
        for (size_t x = 0; x < m; x++) out[x] = rounded(one[x] + share * (two[x] - one[x]));
    }
}

/* How many inputs a window touches. */
static int touched(double start, double length, int inputs) {
    int end = (int)ceil(start + length);
    return (end < inputs ? end : inputs) - (int)start;
}

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

int resize_area(const image_window *source, uint8_t *destination, int rows, int columns, int flip, scratch *kept) {
    /* All that follows is of the pixels that the window touches alone: a crop is resized as the image that it is. */
    int left = (int)source->left, wide = touched(source->left, source->width, source->columns);
    int top = (int)source->top, high = touched(source->top, source->height, source->rows);
    int shrinks = source->height >= rows && source->width >= columns;
    resize_plan p = {.pixels = source->pixels + top * source->stride + 3 * (ptrdiff_t)left, .stride = source->stride,
                     .n = 3 * (size_t)wide,
                     .down.outputs = rows, .right.outputs = columns, .destination = destination,
                     .grows = !shrinks && source->height < rows};
    p.down.taps = shrinks ? area_taps(high, source->top - top, source->height, rows) : linear_taps(source->height);
    p.right.taps = shrinks ? area_taps(wide, source->left - left, source->width, columns) : linear_taps(source->width);
    size_t m = 3 * (size_t)columns;
    if (source->height == rows && source->width == columns && p.down.taps == 1 && p.right.taps == 1 && !flip) {
        for (int o = 0; o < rows; o++) memcpy(destination + o * m, p.pixels + o * p.stride, m);
        return 0;
    }
    size_t weights = (size_t)columns * p.right.taps;
    size_t sizes[] = {4 * (size_t)rows, 4 * (size_t)rows * p.down.taps, 4 * (size_t)columns, 4 * weights,
                      4 * (p.n + 16), 4 * (m + 16), 4 * (m + 16), 24 * weights + 64};
    uint8_t *parts[8];
    size_t total = 0;
    for (int i = 0; i < 8; i++) total += aligned(sizes[i]);
    if (!(parts[0] = reserve(kept, total))) return -1;
    for (int i = 1; i < 8; i++) parts[i] = parts[i - 1] + aligned(sizes[i - 1]);
    p.down.first = (int32_t *)parts[0], p.down.weight = (float *)parts[1];
    p.right.first = (int32_t *)parts[2], p.right.weight = (float *)parts[3];
    p.line[0] = parts[4], p.line[1] = parts[5], p.line[2] = parts[6], p.table = parts[7];
    if (shrinks) {
        area_axis(&p.down, high, source->top - top, source->height);
        area_axis(&p.right, wide, source->left - left, source->width);
    } else { /* the window is of whole pixels: only what shrinks is decoded at a scale */
        linear_axis(&p.down, high);
        linear_axis(&p.right, wide);
    }
    if (flip) mirror(&p.right);
    if (resize_avx2(&p) == 0) return 0;
    if (p.grows)
        grow_rows(&p);
    else
        shrink_rows(&p);
    return 0;
}
