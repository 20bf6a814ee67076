/* Baseline Huffman decoding in place of libjpeg's, which takes most of a JPEG's time.

   Each look-up has to wait for the one before, which says how many bits were used. So one serves two coefficients where
   it can. The bytes of the scan are freed of what is stuffed between them beforehand, so that eight are fetched at a
   time, and nothing but the end of a block is a branch that a processor cannot foresee. Whatever is not as in a sound image of one
   scan ends the attempt: libjpeg then begins the image anew, and says what is to be made of it. */

#include "huffman.h"

#include <string.h>

#define END_OF_BLOCK 63 /* zero coefficients: more than are left */
/* Zero bytes behind the scan: more than an MCU of ten blocks can use, and what is fetched beyond. */
#define PADDING (10 * 64 * 27 / 8 + 16)

static const uint8_t NATURAL[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

#define ENTRY(code_bits, number_bits, zeros) ((uint16_t)(((code_bits) + (number_bits)) | (number_bits) << 6 | (zeros) << 10))
#define BITS(entry) ((entry) & 63)
#define NUMBER_BITS(entry) ((entry) >> 6 & 15)
#define ZEROS(entry) ((entry) >> 10)

/* A pair: bits of both, of the first, of the first number, zeros before it; bits of the second number, zeros before it,
   and whether there is a second. Where there is none, it is a 0 in the place that comes next, which remains there. */
#define PAIR(bits, first, one) \
    ((uint32_t)(bits) | (uint32_t)BITS(first) << 6 | (uint32_t)NUMBER_BITS(first) << 11 | (uint32_t)ZEROS(first) << 15 | (one))
#define SECOND(entry) (NUMBER_BITS(entry) << 21 | (uint32_t)ZEROS(entry) << 25 | 1u << 31)
#define PAIR_BITS(pair) ((pair) & 63)
#define FIRST_BITS(pair) ((pair) >> 6 & 31)
#define FIRST_NUMBER_BITS(pair) ((pair) >> 11 & 15)
#define FIRST_ZEROS(pair) ((pair) >> 15 & 63)
#define SECOND_NUMBER_BITS(pair) ((pair) >> 21 & 15)
#define SECOND_ZEROS(pair) ((pair) >> 25 & 63)
#define SECONDS(pair) ((pair) >> 31)

static void fill_pairs(huffman_table *table) {
    for (uint32_t bits = 0; bits < 1 << HUFFMAN_PEEK; bits++) {
        uint32_t first = table->entry[bits], second = 0;
        int left = HUFFMAN_PEEK - (int)BITS(first);
        if (first && ZEROS(first) != END_OF_BLOCK && left > 0)
            second = table->entry[bits << BITS(first) & ((1 << HUFFMAN_PEEK) - 1)];
        if (second && (int)(BITS(second) - NUMBER_BITS(second)) <= left)
            table->pair[bits] = PAIR(BITS(first) + BITS(second), first, SECOND(second));
        else if (first)
            table->pair[bits] = PAIR(BITS(first), first, 0);
    }
}

/* 0, or -1 for a table that a baseline image cannot have. */
static int fill_table(huffman_table *table, const JHUFF_TBL *from, int is_dc) {
    if (table->is_dc == is_dc + 1 && memcmp(table->bits, from->bits, sizeof table->bits) == 0 &&
        memcmp(table->values, from->huffval, sizeof table->values) == 0)
        return 0; /* as in the last image */
    memset(table, 0, sizeof *table);
    int32_t code = 0;
    int count = 0;
    for (int bits = 1; bits <= 16; bits++, code <<= 1) {
        table->offset[bits] = count - code;
        for (int i = 0; i < from->bits[bits]; i++, code++, count++) {
            if (count > 255 || code >= 1 << bits) return -1;
            int symbol = from->huffval[count], number = is_dc ? symbol : symbol & 15, zeros = is_dc ? 0 : symbol >> 4;
            if (number > (is_dc ? 11 : 10) || table->of_symbol[symbol]) return -1;
            if (!is_dc && number == 0 && zeros != 15) {
                if (zeros) return -1;
                zeros = END_OF_BLOCK;
            }
            table->of_symbol[symbol] = ENTRY(bits, number, zeros);
            if (bits > HUFFMAN_PEEK) continue;
            int spread = 1 << (HUFFMAN_PEEK - bits);
            for (int e = 0; e < spread; e++) table->entry[code * spread + e] = table->of_symbol[symbol];
        }
        table->end[bits] = code;
    }
    if (!is_dc) fill_pairs(table);
    memcpy(table->bits, from->bits, sizeof table->bits);
    memcpy(table->values, from->huffval, sizeof table->values);
    table->is_dc = is_dc + 1;
    return 0;
}

/* The bytes from `from` to the next marker, of 0xff 0x00 only the first. Their number, or -1 without memory. */
static ptrdiff_t unstuff(const uint8_t *from, size_t size, scratch *kept) {
    uint8_t *to = reserve(kept, size + PADDING);
    if (!to) return -1;
    const uint8_t *end = from + size;
    while (from < end) {
        const uint8_t *stop = memchr(from, 0xff, end - from);
        size_t run = (stop ? stop : end) - from;
        memcpy(to, from, run);
        to += run;
        if (!stop || end - stop < 2 || stop[1] != 0) break;
        *to++ = 0xff;
        from = stop + 2;
    }
    memset(to, 0, PADDING);
    return to - kept->bytes;
}

int huffman_begin(huffman_decoder *h, j_decompress_ptr image) {
    if (image->progressive_mode || image->arith_code || image->restart_interval) return -1;
    if (image->comps_in_scan != image->num_components) return -1;
    for (int c = 0; c < image->comps_in_scan; c++) {
        int dc = image->cur_comp_info[c]->dc_tbl_no, ac = image->cur_comp_info[c]->ac_tbl_no;
        if (dc < 0 || ac < 0 || dc >= NUM_HUFF_TBLS || ac >= NUM_HUFF_TBLS) return -1;
        if (!image->dc_huff_tbl_ptrs[dc] || !image->ac_huff_tbl_ptrs[ac]) return -1;
        if (fill_table(&h->dc[dc], image->dc_huff_tbl_ptrs[dc], 1)) return -1;
        if (fill_table(&h->ac[ac], image->ac_huff_tbl_ptrs[ac], 0)) return -1;
    }
    h->blocks = image->blocks_in_MCU;
    for (int b = 0; b < h->blocks; b++) {
        int c = h->component[b] = image->MCU_membership[b];
        h->block_dc[b] = &h->dc[image->cur_comp_info[c]->dc_tbl_no];
        h->block_ac[b] = &h->ac[image->cur_comp_info[c]->ac_tbl_no];
    }
    ptrdiff_t size = unstuff(image->src->next_input_byte, image->src->bytes_in_buffer, &h->bytes);
    if (size < 0) return -1;
    h->next = h->bytes.bytes, h->end = h->next + size;
    h->buffer = 0, h->bits = 0;
    memset(h->last_dc, 0, sizeof h->last_dc);
    return 0;
}

#define INLINE static inline __attribute__((always_inline))

/* The next bits, at the top; below, and behind the last byte, there are zeros. */
typedef struct {
    uint64_t buffer;
    int bits;
    const uint8_t *next, *end;
} reader;

/* 56 bits at least, enough for two codes with their numbers. */
INLINE void refill(reader *r) {
    uint64_t bytes;
    memcpy(&bytes, r->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    r->buffer |= bytes >> r->bits;
    r->next += (63 - r->bits) >> 3;
    r->bits |= 56;
}

INLINE void skip(reader *r, int bits) { r->buffer <<= bits, r->bits -= bits; }

/* What comes next; 0 if there is no such code. */
INLINE uint32_t look_up(const huffman_table *table, const reader *r) {
    uint32_t entry = table->entry[r->buffer >> (64 - HUFFMAN_PEEK)];
    for (int bits = HUFFMAN_PEEK + 1; __builtin_expect(!entry, 0) && bits <= 16; bits++) {
        int32_t code = (int32_t)(r->buffer >> (64 - bits));
        if (code < table->end[bits]) entry = table->of_symbol[table->values[(code + table->offset[bits]) & 255]];
    }
    return entry;
}

/* A number of so many bits, the last of `end` bits; 0 if it has none. One that begins with 0 is negative. */
INLINE int number_of(int bits, int end, uint64_t buffer) {
    buffer <<= end - bits;
    int negative = (int)(~(int64_t)buffer >> 63);
    return (int)(buffer >> 1 >> (63 - bits)) + (negative & (1 - (1 << bits)));
}

/* The next coefficients of a block, of which the first is number *k. 0, 1 at the end of the block, or -1 if it is not
   as it should be. */
INLINE int decode_coefficients(const huffman_table *ac, reader *r, JCOEF *block, int *k) {
    uint32_t pair = ac->pair[r->buffer >> (64 - HUFFMAN_PEEK)];
    if (__builtin_expect(!pair, 0)) {
        uint32_t entry = look_up(ac, r);
        if (!entry) return -1;
        pair = PAIR(BITS(entry), entry, 0);
    }
    int first = *k + FIRST_ZEROS(pair), second = first + 1 + SECOND_ZEROS(pair);
    if (first > 63) {
        skip(r, PAIR_BITS(pair));
        return FIRST_ZEROS(pair) == END_OF_BLOCK ? 1 : -1;
    }
    if (block) block[NATURAL[first]] = (JCOEF)number_of(FIRST_NUMBER_BITS(pair), FIRST_BITS(pair), r->buffer);
    if (second > 63) {
        skip(r, first == 63 ? FIRST_BITS(pair) : PAIR_BITS(pair));
        return first == 63 || SECOND_ZEROS(pair) == END_OF_BLOCK ? 1 : -1;
    }
    if (block) block[NATURAL[second]] = (JCOEF)number_of(SECOND_NUMBER_BITS(pair), PAIR_BITS(pair), r->buffer);
    skip(r, PAIR_BITS(pair));
    *k = second + SECONDS(pair);
    return *k > 63;
}

/* One block. 0, or -1 if it is not as it should be. */
INLINE int decode_block(const huffman_table *dc, const huffman_table *ac, int *last_dc, reader *r, JCOEF *block) {
    refill(r);
    uint32_t entry = look_up(dc, r);
    if (!entry) return -1;
    *last_dc += number_of(NUMBER_BITS(entry), BITS(entry), r->buffer);
    if (*last_dc != (JCOEF)*last_dc) return -1; /* only in a damaged image, in which it might go on to where int ends */
    if (block) block[0] = (JCOEF)*last_dc;
    skip(r, BITS(entry));
    for (int k = 1, end;;) {
        if ((end = decode_coefficients(ac, r, block, &k))) return end < 0 ? end : 0;
        refill(r);
        if ((end = decode_coefficients(ac, r, block, &k))) return end < 0 ? end : 0;
    }
}

INLINE int decode_mcu(huffman_decoder *h, JBLOCKROW *blocks) {
    reader r = {h->buffer, h->bits, h->next, h->end};
    for (int b = 0; b < h->blocks; b++) {
        JCOEF *block = blocks ? (JCOEF *)blocks[b] : NULL;
        if (decode_block(h->block_dc[b], h->block_ac[b], &h->last_dc[h->component[b]], &r, block)) return -1;
    }
    h->buffer = r.buffer, h->bits = r.bits, h->next = r.next;
    /* What was used lies before the end, unless it was padding. */
    return r.next - r.bits / 8 <= r.end ? 0 : -1;
}

static int decode_anywhere(huffman_decoder *h, JBLOCKROW *blocks) {
    return blocks ? decode_mcu(h, blocks) : decode_mcu(h, NULL);
}

#ifdef __x86_64__
__attribute__((target("bmi2"))) static int decode_bmi2(huffman_decoder *h, JBLOCKROW *blocks) {
    return blocks ? decode_mcu(h, blocks) : decode_mcu(h, NULL);
}
#endif

int huffman_mcu(huffman_decoder *h, JBLOCKROW *blocks) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("bmi2")) return decode_bmi2(h, blocks);
#endif
    return decode_anywhere(h, blocks);
}
