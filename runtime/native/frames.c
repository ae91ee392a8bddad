#include "frames.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

int32_t gs_frames_available(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
}

TARGET static void across(const gs_resize *plan, const uint8_t *row, int16_t *out) {
    for (int32_t block = 0; block < plan->blocks; block++) {
        const __m512i window = _mm512_loadu_si512(row + plan->starts[block]);
        const __m256i order = _mm256_loadu_si256((const void *)(plan->order + (ptrdiff_t)block * 32));
        const __m256i pairs = _mm512_castsi512_si256(_mm512_permutexvar_epi8(_mm512_castsi256_si512(order), window));
        const __m512i sums = _mm512_madd_epi16(_mm512_cvtepu8_epi16(pairs),
                                               _mm512_loadu_si512(plan->across + (ptrdiff_t)block * 32));
        _mm256_storeu_si256((void *)(out + (ptrdiff_t)block * 16), _mm512_cvtepi32_epi16(_mm512_srli_epi32(sums, 4)));
    }
}

TARGET void gs_resize_rows(const gs_resize *plan, const uint8_t *in, int64_t in_step, uint8_t *out, int64_t out_step,
                           int32_t first, int32_t end, int16_t *scratch) {
    const int32_t bytes = plan->out_width * 3;
    int16_t *rows[2] = {scratch, scratch + (ptrdiff_t)plan->blocks * 16};
    int32_t held[2] = {-1, -1};
    const __m512i two = _mm512_set1_epi16(2);
    for (int32_t y = first; y < end; y++, out += out_step) {
        const int16_t *from[2];
        for (int32_t i = 0; i < 2; i++) {
            const int32_t row = plan->rows[2 * y + i];
            if (held[row & 1] != row) {
                across(plan, in + row * in_step, rows[row & 1]);
                held[row & 1] = row;
            }
            from[i] = rows[row & 1];
        }
        const __m512i upper = _mm512_set1_epi16(plan->down[2 * y]), lower = _mm512_set1_epi16(plan->down[2 * y + 1]);
        for (int32_t x = 0; x < bytes; x += 32) {
            const __m512i a = _mm512_mulhi_epi16(_mm512_loadu_si512(from[0] + x), upper);
            const __m512i b = _mm512_mulhi_epi16(_mm512_loadu_si512(from[1] + x), lower);
            const __m512i sum = _mm512_srli_epi16(_mm512_add_epi16(_mm512_add_epi16(a, b), two), 2);
            const int32_t left = bytes - x;
            if (left >= 32)
                _mm256_storeu_si256((void *)(out + x), _mm512_cvtepi16_epi8(sum));
            else
                _mm256_mask_storeu_epi8(out + x, (1u << left) - 1, _mm512_cvtepi16_epi8(sum));
        }
    }
}

TARGET void gs_resize_label_rows(const gs_repeat *plan, const uint8_t *in, uint8_t *out, int32_t first, int32_t end) {
    const uint8_t *above = NULL;
    out += (ptrdiff_t)first * plan->out_width;
    for (int32_t y = first; y < end; y++, out += plan->out_width) {
        if (above && plan->rows[y] == plan->rows[y - 1]) {
            memcpy(out, above, (size_t)plan->out_width);
            continue;
        }
        const uint8_t *row = in + (ptrdiff_t)plan->rows[y] * plan->in_width;
        for (int32_t block = 0, x = 0; x < plan->out_width; block++, x += 64) {
            const uint8_t *at = row + plan->starts[block];
            const __m512i order = _mm512_loadu_si512(plan->order + (ptrdiff_t)block * 64);
            const __m512i found =
                _mm512_permutex2var_epi8(_mm512_loadu_si512(at), order, _mm512_loadu_si512(at + 64));
            const int32_t left = plan->out_width - x;
            if (left >= 64)
                _mm512_storeu_si512(out + x, found);
            else
                _mm512_mask_storeu_epi8(out + x, (1ull << left) - 1, found);
        }
        above = out;
    }
}
#else
int32_t gs_frames_available(void) { return 0; }
void gs_resize_rows(const gs_resize *plan, const uint8_t *in, int64_t in_step, uint8_t *out, int64_t out_step, int32_t first,
                    int32_t end, int16_t *scratch) {
    (void)plan, (void)in, (void)in_step, (void)out, (void)out_step, (void)first, (void)end, (void)scratch;
}
void gs_resize_label_rows(const gs_repeat *plan, const uint8_t *in, uint8_t *out, int32_t first, int32_t end) {
    (void)plan, (void)in, (void)out, (void)first, (void)end;
}
#endif

void gs_resize_labels(const gs_repeat *plan, const uint8_t *in, uint8_t *out) {
    gs_resize_label_rows(plan, in, out, 0, plan->out_height);
}

size_t gs_resize_scratch(int32_t blocks) { return 2 * 16 * (size_t)blocks + 32; }

void gs_resize_frame(const gs_resize *plan, const uint8_t *in, int64_t in_step, uint8_t *out, int16_t *scratch) {
    gs_resize_rows(plan, in, in_step, out, 3 * (int64_t)plan->out_width, 0, plan->out_height, scratch);
}
