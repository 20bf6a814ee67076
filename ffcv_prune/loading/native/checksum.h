/* The check of stored samples, see checksum.c. `loading/native_code.py` has the same structures. */

#ifndef FFCV_PRUNE_CHECKSUM_H
#define FFCV_PRUNE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* What a field has stored outside the metadata: of sample i, size[i] bytes at the uint64 that stands, at any address,
   at `place` + i * `stride`, counted from the beginning of the file. */
typedef struct {
    const uint8_t *place;
    int64_t stride;
    const uint32_t *size;
} stored_field;

/* The samples of a file, all of it in memory. */
typedef struct {
    const uint8_t *file, *records; /* records: the metadata, of record_bytes each */
    const uint32_t *checksums;
    uint8_t *unread; /* 1 for each sample that was not checked */
    const stored_field *fields;
    int64_t field_count, record_bytes;
} stored_samples;

/* Check those of the samples that are unread; the sound ones are not, afterwards. Whether all are sound. */
int check_samples(const stored_samples *stored, const int64_t *samples, int64_t count);

/* Ways to a sum, the later the faster. */
enum { CRC32C_TABLES, CRC32C_INSTRUCTION, CRC32C_VECTORS };

/* CRC-32C of some bytes after others, whose sum is *crc (0 without any). 0 where this processor has no such way. */
int crc32c_by(int way, const uint8_t *bytes, size_t size, uint32_t *crc);

#endif
