/* Vectors of 512 bits: four lanes of 128. Unpacking and packing work within lanes. */
#include <immintrin.h>
#define LANES 4
#define PIXELS 6 /* of a tile: 24 sums, 4 weights and a broadcast fit 32 registers */
#define NARROW_PIXELS 16
typedef __m512i V;
typedef __m512 F;
#define V_ZERO() _mm512_setzero_si512()
#define V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define V_LO8(a, b) _mm512_unpacklo_epi8(a, b)
#define V_HI8(a, b) _mm512_unpackhi_epi8(a, b)
#define V_LO16(a, b) _mm512_unpacklo_epi16(a, b)
#define V_HI16(a, b) _mm512_unpackhi_epi16(a, b)
#define V_PACK32(a, b) _mm512_packs_epi32(a, b)
#define V_PACK16(a, b) _mm512_packus_epi16(a, b)
#define V_ADD16(a, b) _mm512_add_epi16(a, b)
#define V_SRA16(a, n) _mm512_srai_epi16(a, n)
#define V_SET16(n) _mm512_set1_epi16(n)
#define V_MIN16(a, b) _mm512_min_epi16(a, b)
#define V_MAX16(a, b) _mm512_max_epi16(a, b)
#define V_SET32(n) _mm512_set1_epi32(n)
#define V_OR(a, b) _mm512_or_si512(a, b)
#define V_SHL32(a, n) _mm512_slli_epi32(a, n)
#define F_LOAD(p) _mm512_loadu_ps(p)
#define F_SET(x) _mm512_set1_ps(x)
#define F_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define F_FROM(v) _mm512_cvtepi32_ps(v)
#define V_ROUND(f) _mm512_cvtps_epi32(f)
#define V_LO32(a, b) _mm512_unpacklo_epi32(a, b)
#define V_HI32(a, b) _mm512_unpackhi_epi32(a, b)
#define V_LO64(a, b) _mm512_unpacklo_epi64(a, b)
#define V_HI64(a, b) _mm512_unpackhi_epi64(a, b)
#define V_ANDNOT(a, b) _mm512_andnot_si512(a, b) /* ~a & b */
#define V_MAX32(a, b) _mm512_max_epi32(a, b)
#define V_PICK(a, b, yes, no) _mm512_mask_mov_epi32(no, _mm512_cmpgt_epi32_mask(a, b), yes) /* a > b ? yes : no */

/* In assembly because GCC copies the sums of the intrinsic's loops through memory, which halves their speed. */
static inline V v_dot(V sum, V u, V s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "vm"(s));
    return sum;
}
#define V_DOT(acc, u, s) v_dot(acc, u, s)
#define V_DOT_FOUR(acc, u, s) v_dot(acc, u, s) /* u: of v_broadcast */
#define V_INPUT(v) (v)                         /* bytes of inputs -> what V_DOT takes */
#define V_START(p) V_ZERO()                    /* what sums begin with, see gs_conv */
static inline V v_broadcast(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
/* The label head: pixels of 4 bytes, times 2 to the shift: bytes 0 and 2, or 1 and 3, as int16. */
static inline V v_even(V v, int shift) { return _mm512_maddubs_epi16(v, V_SET16((int16_t)(1 << shift))); }
static inline V v_odd(V v, int shift) { return _mm512_maddubs_epi16(v, V_SET16((int16_t)(256 << shift))); }
/* 16 bytes for each lane, `step` bytes apart. */
static inline V v_gather(const uint8_t *p, ptrdiff_t step) {
    if (step == 16) return V_LOAD(p);
    V v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + step)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 2 * step)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 3 * step)), 3);
}
/* Adds products with a pair of a row's weights. */
typedef struct {
    int16_t pair[2];
} v_pair;
static inline V v_dot_pair(V sum, V inputs, const int16_t *weights) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(inputs), "m"(*(const v_pair *)(const void *)weights));
    return sum;
}
#define V_DOT_ROW(sum, inputs, four, row) sum = v_dot_pair(sum, inputs, (four) + 4 * (row))
/* After V_PACK32 and V_PACK16 of four vectors of 16 channels each: bytes in the channels' order. */
static inline V v_natural(V v) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}
/* 16 bytes -> 16 int32 in one vector, and back with saturation. */
#define NARROW_VECTORS 1
static inline V v_widen(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline void v_widen16(const uint8_t *p, V *v) { v[0] = v_widen(p); }
static inline __m128i v_narrow16(const V *v) {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(v[0], _mm512_setzero_si512()));
}
typedef __m128i Q;
#define Q_LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define Q_STORE(p, q) _mm_storeu_si128((__m128i *)(p), q)
#define Q_MAX8(a, b) _mm_max_epu8(a, b)
/* 16 int32 in one vector -> 16 int16, saturated, 32 bytes */
static inline void s16_store16(int16_t *p, const V *v) {
    const __m256i limit = _mm256_set1_epi16(S16_LIMIT);
    const __m256i low = _mm256_sub_epi16(_mm256_setzero_si256(), limit);
    _mm256_storeu_si256((__m256i *)p, _mm256_max_epi16(_mm256_min_epi16(_mm512_cvtsepi32_epi16(v[0]), limit), low));
}
/* Vectors `even` and `odd` of s16 hold 2 pixels of 16 channels each -> 4 pixels in turn. */
static inline V v_alternate16(V even, V odd) { return _mm512_permutex_epi64(_mm512_packus_epi16(even, odd), 0xD8); }
static inline void v_store_part(uint8_t *p, V v, int bytes) {
    _mm512_mask_storeu_epi8(p, bytes >= 64 ? ~0ull : (1ull << bytes) - 1, v);
}
/* Labels in 16 lanes of 32 bits, the second vector shifted by 8: pairs of bytes. */
static inline void v_store_pairs(uint8_t *p, V v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v)); }
static inline void v_store_single(uint8_t *p, V v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }
/* (last lane of a, first three of b) and (last three lanes of a, first of b) */
static inline V v_last_lane(V a, V b) { return _mm512_alignr_epi32(b, a, 12); }
static inline V v_first_lane(V a, V b) { return _mm512_alignr_epi32(b, a, 4); }
