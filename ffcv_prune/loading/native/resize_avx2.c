/* The resize of resize.c by AVX2, in fixed-point numbers: 15 bits for a weight, and for a row between the two steps.

   What is rounded on the way adds up to less than a tenth of 1 of 255 as long as an output has few inputs. */

#include "native.h"

#ifdef __x86_64__
#include <immintrin.h>
#include <string.h>

#define AVX2 static inline __attribute__((always_inline, target("avx2")))
#define MOST_TAPS 16
#define AHEAD 4 /* outputs, of whose rows the last is fetched from memory */

/* The weights of `right` as pairs of int16, of weight 1 = 32767: for each two outputs, and each two of their inputs,
   four times those of the one and four times those of the other. */
static void fill_table(const axis *a, int pairs, int16_t *table) {
    for (int o = 0; o < a->outputs + a->outputs % 2; o++)
        for (int pair = 0; pair < pairs; pair++)
            for (int t = 2 * pair; t < 2 * pair + 2; t++) {
                int there = o < a->outputs && t < a->taps;
                float weight = there ? a->weight[(size_t)o * a->taps + t] * 32768 + 0.5f : 0;
                int16_t *to = table + ((size_t)(o / 2) * pairs + pair) * 16 + o % 2 * 8 + t % 2;
                for (int lane = 0; lane < 4; lane++) to[2 * lane] = weight < 32767 ? (int16_t)weight : 32767;
            }
}

/* 32 numbers from the rows of an output: the sums of uint8 times weights, of weight 1 = 32768, as 128 times the mean. */
AVX2 void mean_of_32(const uint8_t *row, ptrdiff_t stride, const uint16_t *weight, int taps, int16_t *mean) {
    const __m256i zero = _mm256_setzero_si256();
    /* Each product is cut off, by a half in the mean. */
    __m256i low = _mm256_set1_epi16((int16_t)(taps / 2)), high = low;
    for (int t = 0; t < taps; t++) {
        __m256i w = _mm256_set1_epi16((int16_t)weight[t]);
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(row + t * stride));
        bytes = _mm256_permute4x64_epi64(bytes, 0xd8); /* unpacking works on each half */
        low = _mm256_add_epi16(low, _mm256_mulhi_epu16(_mm256_unpacklo_epi8(zero, bytes), w));
        high = _mm256_add_epi16(high, _mm256_mulhi_epu16(_mm256_unpackhi_epi8(zero, bytes), w));
    }
    _mm256_storeu_si256((__m256i *)mean, low);
    _mm256_storeu_si256((__m256i *)(mean + 16), high);
}

AVX2 void mean_of_rows(const uint8_t *row, ptrdiff_t stride, const uint16_t *weight, int taps, size_t n, int16_t *mean) {
    size_t x = 0;
    for (; x + 32 <= n; x += 32) mean_of_32(row + x, stride, weight, taps, mean + x);
    if (x < n) mean_of_32(row + n - 32, stride, weight, taps, mean + n - 32);
}

/* The columns of a row, int16[.][3], to uint8[outputs][3] or to int16[outputs][3], two outputs at a time: writes up to
   4 bytes, or 8, behind them. */
AVX2 void columns_of(const axis *a, int pairs, const int16_t *table, const int16_t *row, uint8_t *bytes,
                     int16_t *numbers) {
    /* Red, green and blue of one input beside those of the next. */
    const __m256i beside = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(bytes ? 1 << 21 : 1 << 14);
    for (int o = 0; o < a->outputs; o += 2, table += 16 * pairs) {
        const int16_t *one = row + 3 * (size_t)a->first[o];
        const int16_t *two = row + 3 * (size_t)a->first[o + 1 < a->outputs ? o + 1 : o];
        __m256i sum = half;
        for (int pair = 0; pair < pairs; pair++) {
            __m256i both = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(one + 6 * pair)));
            both = _mm256_inserti128_si256(both, _mm_loadu_si128((const __m128i *)(two + 6 * pair)), 1);
            __m256i weight = _mm256_loadu_si256((const __m256i *)(table + 16 * pair));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(both, beside), weight));
        }
        if (bytes) {
            sum = _mm256_srai_epi32(sum, 22);
            sum = _mm256_packs_epi32(sum, sum);
            sum = _mm256_packus_epi16(sum, sum);
            uint32_t first = _mm_cvtsi128_si32(_mm256_castsi256_si128(sum));
            uint32_t second = _mm_cvtsi128_si32(_mm256_extracti128_si256(sum, 1));
            memcpy(bytes + 3 * (size_t)o, &first, 4);
            memcpy(bytes + 3 * (size_t)o + 3, &second, 4);
        } else {
            sum = _mm256_srai_epi32(sum, 15);
            sum = _mm256_packs_epi32(sum, sum);
            _mm_storel_epi64((__m128i *)(numbers + 3 * (size_t)o), _mm256_castsi256_si128(sum));
            _mm_storel_epi64((__m128i *)(numbers + 3 * (size_t)o + 3), _mm256_extracti128_si256(sum, 1));
        }
    }
}

AVX2 void columns_by_pairs(const axis *a, int pairs, const int16_t *table, const int16_t *row, uint8_t *bytes,
                           int16_t *numbers) {
    if (pairs == 1) /* loops of a known length are unrolled */
        columns_of(a, 1, table, row, bytes, numbers);
    else if (pairs == 2)
        columns_of(a, 2, table, row, bytes, numbers);
    else
        columns_of(a, pairs, table, row, bytes, numbers);
}

/* one + share * (two - one), of share 1 = 32768, from 128 times the value to the value; 32 numbers. */
AVX2 void blend_32(const int16_t *one, const int16_t *two, __m256i share, uint8_t *out) {
    __m256i sums[2];
    for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(one + 16 * i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(two + 16 * i));
        a = _mm256_add_epi16(a, _mm256_mulhrs_epi16(_mm256_sub_epi16(b, a), share));
        sums[i] = _mm256_srai_epi16(_mm256_add_epi16(a, _mm256_set1_epi16(64)), 7);
    }
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(sums[0], sums[1]), 0xd8);
    _mm256_storeu_si256((__m256i *)out, bytes);
}

/* Raw pixels come from anywhere in memory: rows that are new to a coming output are fetched meanwhile. */
static void fetch_rows(const resize_plan *p, int first, int next) {
    for (int r = first + p->down.taps; r < next + p->down.taps; r++)
        for (size_t x = 0; x < p->n; x += 64) __builtin_prefetch(p->pixels + r * p->stride + x);
}

__attribute__((target("avx2"))) static void shrink_rows(const resize_plan *p, int pairs, const int16_t *table) {
    int16_t *mean = (int16_t *)p->line[0];
    size_t m = 3 * (size_t)p->right.outputs;
    for (int o = 0; o < p->down.outputs; o++) {
        const uint8_t *row = p->pixels + p->down.first[o] * p->stride;
        if (o + AHEAD < p->down.outputs) fetch_rows(p, p->down.first[o + AHEAD - 1], p->down.first[o + AHEAD]);
        uint16_t weight[MOST_TAPS];
        for (int t = 0; t < p->down.taps; t++)
            weight[t] = (uint16_t)(p->down.weight[(size_t)o * p->down.taps + t] * 32768 + 0.5f);
        switch (p->down.taps) { /* loops of a known length are unrolled */
        case 1: mean_of_rows(row, p->stride, weight, 1, p->n, mean); break;
        case 2: mean_of_rows(row, p->stride, weight, 2, p->n, mean); break;
        case 3: mean_of_rows(row, p->stride, weight, 3, p->n, mean); break;
        case 4: mean_of_rows(row, p->stride, weight, 4, p->n, mean); break;
        default: mean_of_rows(row, p->stride, weight, p->down.taps, p->n, mean);
        }
        int last = o + 1 == p->down.outputs;
        uint8_t *out = last ? p->line[1] : p->destination + m * o;
        columns_by_pairs(&p->right, pairs, table, mean, out, NULL);
        if (last) memcpy(p->destination + m * o, out, m);
    }
}

__attribute__((target("avx2"))) static void grow_rows(const resize_plan *p, int pairs, const int16_t *table) {
    const uint16_t once = 32768;
    int16_t *line = (int16_t *)p->line[0];
    size_t m = 3 * (size_t)p->right.outputs;
    int done = -1; /* row r is in line[1 + r % 2], up to this one */
    for (int o = 0; o < p->down.outputs; o++) {
        int first = p->down.first[o], last = first + p->down.taps - 1;
        for (int r = done < first ? first : done + 1; r <= last; done = r++) {
            mean_of_rows(p->pixels + r * p->stride, 0, &once, 1, p->n, line);
            columns_by_pairs(&p->right, pairs, table, line, NULL, (int16_t *)p->line[1 + r % 2]);
        }
        const int16_t *one = (int16_t *)p->line[1 + first % 2], *two = (int16_t *)p->line[1 + last % 2];
        float share = p->down.taps > 1 ? p->down.weight[2 * o + 1] * 32768 + 0.5f : 0;
        __m256i shares = _mm256_set1_epi16(share < 32767 ? (int16_t)share : 32767);
        uint8_t *out = p->destination + m * o;
        size_t x = 0;
        for (; x + 32 <= m; x += 32) blend_32(one + x, two + x, shares, out + x);
        if (x < m) blend_32(one + m - 32, two + m - 32, shares, out + m - 32);
    }
}

int resize_avx2(const resize_plan *p) {
    size_t m = 3 * (size_t)p->right.outputs;
    if (!__builtin_cpu_supports("avx2") || p->n < 32 || m < 32) return -1;
    if (p->down.taps > MOST_TAPS || p->right.taps > MOST_TAPS) return -1;
    int pairs = (p->right.taps + 1) / 2;
    int16_t *table = (int16_t *)p->table;
    fill_table(&p->right, pairs, table);
    memset((int16_t *)p->line[0] + p->n, 0, 16); /* read beside the last pixel, times 0 */
    if (p->grows)
        grow_rows(p, pairs, table);
    else
        shrink_rows(p, pairs, table);
    return 0;
}

#else
int resize_avx2(const resize_plan *plan) {
    (void)plan;
    return -1;
}
#endif
