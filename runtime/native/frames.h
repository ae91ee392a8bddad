/* Frames to the network's size and labels back to the frame's, with tables that the caller makes once per pair of sizes. */
#ifndef GRADSEG_FRAMES_H
#define GRADSEG_FRAMES_H
#include <stddef.h>
#include <stdint.h>

/* uint8 BGR, bilinear. Across: 16 output bytes a block; byte i = in[starts + order[2i]] * across[2i] + in[starts +
 * order[2i + 1]] * across[2i + 1], kept without its last 4 bits; order < 64, and 64 bytes are read from each start.
 * Down: output row y from rows[2y] and rows[2y + 1] with factors down[2y], down[2y + 1]; those two rows are the same or
 * neighbours. All factors in 1/2048. */
typedef struct gs_resize {
    int32_t out_width, out_height, blocks;
    const int32_t *starts;
    const uint8_t *order;
    const int16_t *across;
    const int32_t *rows;
    const int16_t *down;
} gs_resize;

/* uint8 labels, nearest. 64 outputs a block: output i is in[starts + order[i]], order < 128, and 128 bytes are read. */
typedef struct gs_repeat {
    int32_t in_width, out_width, out_height;
    const int32_t *starts;
    const uint8_t *order;
    const int32_t *rows;
} gs_repeat;

/* Whether this CPU and build have them; the rest must not be called where not. */
int32_t gs_frames_available(void);
/* Numbers of scratch that gs_resize_rows needs for so many blocks. */
size_t gs_resize_scratch(int32_t blocks);
/* The output rows from `first` to before `end`; in: in_step bytes a row; out: the first of those rows, out_step bytes each. */
void gs_resize_rows(const gs_resize *plan, const uint8_t *in, int64_t in_step, uint8_t *out, int64_t out_step, int32_t first,
                    int32_t end, int16_t *scratch);
/* All rows; out: contiguous; scratch: of gs_resize_scratch. */
void gs_resize_frame(const gs_resize *plan, const uint8_t *in, int64_t in_step, uint8_t *out, int16_t *scratch);
void gs_resize_labels(const gs_repeat *plan, const uint8_t *in, uint8_t *out);
/* The output rows from `first` to before `end` alone. */
void gs_resize_label_rows(const gs_repeat *plan, const uint8_t *in, uint8_t *out, int32_t first, int32_t end);
#endif
