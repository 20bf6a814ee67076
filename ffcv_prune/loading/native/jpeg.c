/* JPEG images by libjpeg-turbo's own interface: only the rows and columns that are asked for, with the settings that
   FFCV has (fast DCT, smooth chroma), so that the pixels are those of the whole image, cut out. */

#include "huffman.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define JPEG_INTERNALS /* the one use of jpegint.h: decode_mcu, which is replaced */
#include <jerror.h>
#include <jpegint.h>

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "this libjpeg is not libjpeg-turbo, whose jpeg_crop_scanline and jpegint.h are needed"
#endif

/* Pixels beside the region that are decoded with it: chroma is interpolated between neighbours. */
#define MARGIN 2
#define ROWS_AT_ONCE 16

struct jpeg_decoder {
    struct jpeg_decompress_struct image;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    jmp_buf give_up;
    huffman_decoder huffman;
    int refused;     /* `huffman` found the image damaged: what libjpeg makes of it is to be seen */
    uint8_t *pixels; /* where rows are decoded to, from row `top` of the image on; NULL before that is known */
    int top, next;   /* `next` is the row where it stopped */
    int failed;
};

static void give_up(j_common_ptr image) { longjmp(((jpeg_decoder *)image->client_data)->give_up, 1); }

static void be_silent(j_common_ptr image) { (void)image; }

static void count_warning(j_common_ptr image, int level) {
    if (level < 0) image->err->num_warnings++;
}

static void do_nothing(j_decompress_ptr image) { (void)image; }

/* Behind the end of the bytes there is the end of the image, as in libjpeg's own source. */
static boolean end_image(j_decompress_ptr image) {
    static const JOCTET END[2] = {0xff, JPEG_EOI};
    image->err->num_warnings++;
    image->src->next_input_byte = END;
    image->src->bytes_in_buffer = 2;
    return TRUE;
}

static void skip_bytes(j_decompress_ptr image, long count) {
    for (; count > (long)image->src->bytes_in_buffer; end_image(image)) count -= (long)image->src->bytes_in_buffer;
    if (count > 0) image->src->next_input_byte += count, image->src->bytes_in_buffer -= (size_t)count;
}

static boolean next_mcu(j_decompress_ptr image, JBLOCKROW *blocks) {
    jpeg_decoder *decoder = image->client_data;
    if (huffman_mcu(&decoder->huffman, blocks)) {
        decoder->refused = 1;
        give_up((j_common_ptr)image);
    }
    return TRUE;
}

jpeg_decoder *jpeg_decoder_new(void) {
    jpeg_decoder *decoder = calloc(1, sizeof *decoder);
    if (!decoder) return NULL;
    decoder->source.init_source = decoder->source.term_source = do_nothing;
    decoder->source.fill_input_buffer = end_image;
    decoder->source.skip_input_data = skip_bytes;
    decoder->source.resync_to_restart = jpeg_resync_to_restart;
    return decoder;
}

void jpeg_decoder_free(jpeg_decoder *decoder) {
    if (!decoder) return;
    free(decoder->huffman.bytes.bytes);
    free(decoder);
}

static int rounded_up(double value) { return (int)value + ((int)value < value); }

/* The rows and columns [first, end) of the scaled image that the window lies in. */
static void range(double start, double length, int size, int margin, int *first, int *end) {
    *first = (int)start - margin > 0 ? (int)start - margin : 0;
    *end = rounded_up(start + length) + margin;
    *end = *end < size ? *end : size;
}

/* Decodes the rows and columns that the region lies in. Calls give_up where libjpeg can go no further. */
static void decode(jpeg_decoder *decoder, const jpeg_region *region, image_window *window, uint8_t *whole,
                   scratch *kept) {
    j_decompress_ptr image = &decoder->image;
    jpeg_read_header(image, TRUE);
    if (image->image_height != (JDIMENSION)region->rows || image->image_width != (JDIMENSION)region->columns)
        give_up((j_common_ptr)image);
    image->out_color_space = JCS_RGB;
    image->dct_method = JDCT_IFAST;
    image->scale_num = (unsigned)region->eighths, image->scale_denom = 8;
    jpeg_start_decompress(image);
    if (!decoder->refused && huffman_begin(&decoder->huffman, image) == 0) image->entropy->decode_mcu = next_mcu;
    int left = 0, right = (int)image->output_width, top = 0, bottom = (int)image->output_height;
    double scale = region->eighths / 8.0;
    if (!jpeg_has_multiple_scans(image)) { /* where scans are missing, libjpeg smooths, by what it finds around */
        range(region->left * scale, region->width * scale, right, MARGIN, &left, &right);
        range(region->top * scale, region->height * scale, bottom, 0, &top, &bottom);
    }
    JDIMENSION first = (JDIMENSION)left, width = (JDIMENSION)(right - left);
    if (width < image->output_width) jpeg_crop_scanline(image, &first, &width);
    *window = (image_window){whole, 3 * (ptrdiff_t)width, bottom - top, (int)width, region->top * scale - top,
                             region->left * scale - first, region->height * scale, region->width * scale};
    uint8_t *pixels = whole ? whole : reserve(kept, window->stride * (size_t)window->rows);
    if (!pixels) ERREXIT1(image, JERR_OUT_OF_MEMORY, 0);
    window->pixels = decoder->pixels = pixels;
    decoder->top = top;
    if (top) jpeg_skip_scanlines(image, (JDIMENSION)top);
    while ((int)image->output_scanline < bottom) {
        JSAMPROW rows[ROWS_AT_ONCE];
        int row = (int)image->output_scanline - top, count = window->rows - row;
        if (count > ROWS_AT_ONCE) count = ROWS_AT_ONCE;
        for (int r = 0; r < count; r++) rows[r] = pixels + (row + r) * window->stride;
        jpeg_read_scanlines(image, rows, (JDIMENSION)count);
    }
}

/* libjpeg is begun anew for each image: it would keep the tables of the last one, for an image that lacks them. */
static void begin(jpeg_decoder *decoder) {
    memset(&decoder->image, 0, sizeof decoder->image);
    decoder->image.err = jpeg_std_error(&decoder->errors);
    decoder->errors.error_exit = give_up;
    decoder->errors.emit_message = count_warning;
    decoder->errors.output_message = be_silent;
    decoder->image.client_data = decoder;
}

/* 0, or -1 if libjpeg gave up. */
static int attempt(jpeg_decoder *decoder, const uint8_t *bytes, size_t size, const jpeg_region *region,
                   image_window *window, uint8_t *whole, scratch *kept) {
    decoder->pixels = NULL;
    begin(decoder);
    if (setjmp(decoder->give_up) == 0) {
        jpeg_create_decompress(&decoder->image);
        decoder->source.next_input_byte = bytes;
        decoder->source.bytes_in_buffer = size;
        decoder->image.src = &decoder->source;
        decode(decoder, region, window, whole, kept);
        decoder->failed = 0;
    } else {
        decoder->failed = -1;
    }
    decoder->next = (int)decoder->image.output_scanline;
    jpeg_destroy_decompress(&decoder->image);
    return decoder->failed;
}

#define EXAMPLE_SIDE 24

/* A small image as libjpeg itself writes it, to be freed; NULL if it gives up. */
static uint8_t *example(jpeg_decoder *decoder, unsigned long *size) {
    struct jpeg_compress_struct image = {.err = jpeg_std_error(&decoder->errors), .client_data = decoder};
    uint8_t *volatile bytes = NULL;
    decoder->errors.error_exit = give_up;
    if (setjmp(decoder->give_up) == 0) {
        uint8_t row[3 * EXAMPLE_SIDE], *start = NULL;
        jpeg_create_compress(&image);
        jpeg_mem_dest(&image, &start, size);
        image.image_width = image.image_height = EXAMPLE_SIDE;
        image.input_components = 3, image.in_color_space = JCS_RGB;
        jpeg_set_defaults(&image);
        jpeg_start_compress(&image, TRUE);
        while (image.next_scanline < EXAMPLE_SIDE) {
            JSAMPROW rows = row;
            for (int x = 0; x < (int)sizeof row; x++) row[x] = (uint8_t)(x * x + 9 * image.next_scanline);
            jpeg_write_scanlines(&image, &rows, 1);
        }
        jpeg_finish_compress(&image);
        bytes = start;
    }
    jpeg_destroy_compress(&image);
    return bytes;
}

/* libjpeg makes the same of the example by our Huffman decoder as by its own, and did call ours. */
int jpeg_is_usable(void) {
    uint8_t pixels[2][3 * EXAMPLE_SIDE * EXAMPLE_SIDE];
    const jpeg_region all = {EXAMPLE_SIDE, EXAMPLE_SIDE, 0, 0, EXAMPLE_SIDE, EXAMPLE_SIDE, 8};
    image_window window;
    unsigned long size = 0;
    jpeg_decoder *decoder = jpeg_decoder_new();
    uint8_t *bytes = decoder ? example(decoder, &size) : NULL;
    int usable = bytes != NULL;
    for (int its_own = 0; usable && its_own < 2; its_own++) {
        decoder->refused = its_own;
        usable = attempt(decoder, bytes, size, &all, &window, pixels[its_own], NULL) == 0;
    }
    if (usable) usable = decoder->huffman.next > decoder->huffman.bytes.bytes && memcmp(pixels[0], pixels[1], sizeof *pixels) == 0;
    free(bytes);
    jpeg_decoder_free(decoder);
    return usable;
}

int jpeg_decode(jpeg_decoder *decoder, const uint8_t *bytes, size_t size, const jpeg_region *region,
                image_window *window, uint8_t *whole, scratch *kept) {
    decoder->refused = 0;
    int failed = attempt(decoder, bytes, size, region, window, whole, kept);
    if (decoder->refused) failed = attempt(decoder, bytes, size, region, window, whole, kept);
    if (failed && decoder->errors.msg_code == JERR_OUT_OF_MEMORY) return -1;
    if (failed && !decoder->pixels) return 1;
    int done = decoder->next > decoder->top ? decoder->next - decoder->top : 0;
    if (failed && done < window->rows) /* black, instead of what was in the memory before */
        memset(decoder->pixels + done * window->stride, 0, (size_t)((window->rows - done) * window->stride));
    return 0;
}
