/* CRC-32C (Castagnoli; RFC 3720, appendix B.4), and the check of stored samples by it.

   A sum is a remainder of polynomials: n bytes behind it multiply it by x^(8n), hence by the remainder of that, which
   is a constant. So blocks are summed side by side and put together. tests/test_crc32c.py derives the constants. */

#include "checksum.h"

#include <pthread.h>
#include <string.h>

/* What becomes of a byte by 0 ... 7 zero bytes behind it. */
static uint32_t table[8][256];
static pthread_once_t table_filled = PTHREAD_ONCE_INIT;

static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
        table[0][byte] = crc;
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = table[zeros - 1][byte];
            table[zeros][byte] = crc >> 8 ^ table[0][crc & 255];
        }
}

static uint32_t by_tables(uint32_t crc, const uint8_t *bytes, size_t size) {
    pthread_once(&table_filled, fill_table);
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low = crc ^ ((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                              (uint32_t)bytes[3] << 24);
        crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
              table[3][bytes[4]] ^ table[2][bytes[5]] ^ table[1][bytes[6]] ^ table[0][bytes[7]];
    }
    for (; size; size--) crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 255];
    return crc;
}

#ifdef __x86_64__
#include <immintrin.h>

/* x^(8n - 33), in bits reversed, for blocks of n bytes. */
#define AFTER_128 0x0d3b6092
#define AFTER_256 0xb9e02b86
#define AFTER_1024 0x170076fa
#define AFTER_2048 0xa51b6135
/* x^(b + 31) and x^(b - 33), for registers that b bits follow. */
#define BY_2048_BITS _mm_setr_epi32((int)0xdcb17aa4, 0, (int)0xb9e02b86, 0)
#define BY_512_BITS _mm_setr_epi32(0x740eef02, 0, (int)0x9e4addf8, 0)
#define BY_128_BITS _mm_setr_epi32((int)0xf20c0dfe, 0, 0x493c7d27, 0)

#define INSTRUCTION __attribute__((target("sse4.2,pclmul")))
#define VECTORS __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))

static uint64_t word_at(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, 8);
    return word;
}

INSTRUCTION static uint64_t product(uint64_t crc, uint32_t factor) {
    return (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc), _mm_cvtsi32_si128((int)factor), 0));
}

/* Three blocks of `block` bytes side by side: the instruction takes three cycles, and may begin in each. `one` and `two`
   are the factors of so many blocks. */
INSTRUCTION static inline __attribute__((always_inline)) uint64_t three_blocks(uint64_t crc, const uint8_t *bytes, int block, uint32_t one,
                                                uint32_t two) {
    uint64_t second = 0, third = 0;
    for (int at = 0; at < block; at += 8) {
        crc = _mm_crc32_u64(crc, word_at(bytes + at));
        second = _mm_crc32_u64(second, word_at(bytes + block + at));
        third = _mm_crc32_u64(third, word_at(bytes + 2 * block + at));
    }
    return _mm_crc32_u64(0, product(crc, two) ^ product(second, one)) ^ third;
}

INSTRUCTION static uint32_t by_instruction(uint32_t crc, const uint8_t *bytes, size_t size) {
    uint64_t sum = crc;
    for (; size >= 3 * 1024; size -= 3 * 1024, bytes += 3 * 1024) sum = three_blocks(sum, bytes, 1024, AFTER_1024, AFTER_2048);
    for (; size >= 3 * 128; size -= 3 * 128, bytes += 3 * 128) sum = three_blocks(sum, bytes, 128, AFTER_128, AFTER_256);
    for (; size >= 8; size -= 8, bytes += 8) sum = _mm_crc32_u64(sum, word_at(bytes));
    for (; size; size--) sum = _mm_crc32_u8((uint32_t)sum, *bytes++);
    return (uint32_t)sum;
}

/* `sum` moved on by what `factors` are for, and what is there added. */
VECTORS static inline __m512i fold(__m512i sum, __m512i factors, __m512i bytes) {
    __m512i low = _mm512_clmulepi64_epi128(sum, factors, 0x00), high = _mm512_clmulepi64_epi128(sum, factors, 0x11);
    return _mm512_ternarylogic_epi64(low, high, bytes, 0x96);
}

VECTORS static inline __m128i fold_16(__m128i sum, __m128i factors, __m128i bytes) {
    __m128i low = _mm_clmulepi64_si128(sum, factors, 0x00), high = _mm_clmulepi64_si128(sum, factors, 0x11);
    return _mm_ternarylogic_epi64(low, high, bytes, 0x96);
}

/* 256 bytes at a time. */
VECTORS static uint32_t by_vectors(uint32_t crc, const uint8_t *bytes, size_t size) {
    if (size < 512) return by_instruction(crc, bytes, size);
    const __m512i far = _mm512_broadcast_i32x4(BY_2048_BITS), near = _mm512_broadcast_i32x4(BY_512_BITS);
    __m512i sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(bytes + 64 * i);
    sum[0] = _mm512_xor_si512(sum[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (bytes += 256, size -= 256; size >= 256; bytes += 256, size -= 256)
        for (int i = 0; i < 4; i++) sum[i] = fold(sum[i], far, _mm512_loadu_si512(bytes + 64 * i));
    for (int i = 1; i < 4; i++) sum[i] = fold(sum[i - 1], near, sum[i]);
    for (; size >= 64; bytes += 64, size -= 64) sum[3] = fold(sum[3], near, _mm512_loadu_si512(bytes));
    __m128i last = _mm512_castsi512_si128(sum[3]);
    last = fold_16(last, BY_128_BITS, _mm512_extracti32x4_epi32(sum[3], 1));
    last = fold_16(last, BY_128_BITS, _mm512_extracti32x4_epi32(sum[3], 2));
    last = fold_16(last, BY_128_BITS, _mm512_extracti32x4_epi32(sum[3], 3));
    uint64_t rest = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    rest = _mm_crc32_u64(rest, (uint64_t)_mm_extract_epi64(last, 1));
    return by_instruction((uint32_t)rest, bytes, size);
}
#endif

int crc32c_by(int way, const uint8_t *bytes, size_t size, uint32_t *crc) {
    if (way == CRC32C_TABLES) return *crc = ~by_tables(~*crc, bytes, size), 1;
#ifdef __x86_64__
    int instruction = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    int vectors = instruction && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512vl");
    if (way == CRC32C_INSTRUCTION && instruction) return *crc = ~by_instruction(~*crc, bytes, size), 1;
    if (way == CRC32C_VECTORS && vectors) return *crc = ~by_vectors(~*crc, bytes, size), 1;
#endif
    return 0;
}

/* The sum of some bytes after others, whose sum is `crc`. */
static uint32_t crc32c(uint32_t crc, const uint8_t *bytes, size_t size) {
    for (int way = CRC32C_VECTORS; !crc32c_by(way, bytes, size, &crc); way--)
        ;
    return crc;
}

static int check_sample(const stored_samples *stored, int64_t sample) {
    const uint8_t *record = stored->records + sample * stored->record_bytes;
    uint32_t crc = 0;
    for (int64_t f = 0; f < stored->field_count; f++) {
        const stored_field *field = &stored->fields[f];
        uint64_t place;
        memcpy(&place, field->place + sample * field->stride, 8);
        crc = crc32c(crc, stored->file + place, field->size[sample]);
    }
    crc = crc32c(crc, record, (size_t)stored->record_bytes);
    if (crc != stored->checksums[sample]) return 0;
    stored->unread[sample] = 0;
    return 1;
}

int check_samples(const stored_samples *stored, const int64_t *samples, int64_t count) {
    int sound = 1;
    for (int64_t i = 0; i < count; i++)
        if (stored->unread[samples[i]]) sound &= check_sample(stored, samples[i]);
    return sound;
}
