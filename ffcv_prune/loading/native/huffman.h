/* Huffman decoding of baseline JPEG images, see huffman.c. */

#ifndef FFCV_PRUNE_HUFFMAN_H
#define FFCV_PRUNE_HUFFMAN_H

#include "native.h"

#include <stdio.h>

#include <jpeglib.h>

#define HUFFMAN_PEEK 11 /* bits of a look-up */

/* How to go on by the next bits: bits of the code and of the number behind it together, bits of the number, zero
   coefficients before it, and bits of the code. 0 where the code is longer. */
typedef struct {
    uint16_t entry[1 << HUFFMAN_PEEK];
    uint32_t pair[1 << HUFFMAN_PEEK]; /* of AC tables: the same for two coefficients at once, where both codes are seen */
    uint16_t of_symbol[256];
    int32_t end[17], offset[17];   /* by the size of a code: the first that is none, and from a code to its position */
    uint8_t bits[17], values[256]; /* what it was made of */
    int is_dc;
} huffman_table;

typedef struct {
    uint64_t buffer;
    int bits;
    const uint8_t *next, *end;
    int blocks, component[D_MAX_BLOCKS_IN_MCU], last_dc[MAX_COMPS_IN_SCAN];
    const huffman_table *block_dc[D_MAX_BLOCKS_IN_MCU], *block_ac[D_MAX_BLOCKS_IN_MCU];
    huffman_table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    scratch bytes; /* of the scan, without what is stuffed between them */
} huffman_decoder;

/* To be called between jpeg_start_decompress and the first row. 0, or -1 for an image that is not for it. */
int huffman_begin(huffman_decoder *h, j_decompress_ptr image);

/* The coefficients of the next MCU, which are zero before; NULL: nowhere. 0, or -1 if the image is damaged. */
int huffman_mcu(huffman_decoder *h, JBLOCKROW *blocks);

#endif
