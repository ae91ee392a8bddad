/* Vectors of 256 bits: two lanes of 128. With AVX_VNNI dot products are one instruction, else four that are as exact. */
#include <immintrin.h>
#define LANES 2
#ifdef AVX_VNNI
#define PIXELS 3 /* of a tile: 12 sums, a weight and 3 inputs fit 16 registers */
#else
#define PIXELS 2 /* 8 sums, 4 weights, an input and what a dot product needs */
#endif
#define NARROW_PIXELS 4
typedef __m256i V;
typedef __m256 F;
#define V_ZERO() _mm256_setzero_si256()
#define V_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define V_LO8(a, b) _mm256_unpacklo_epi8(a, b)
#define V_HI8(a, b) _mm256_unpackhi_epi8(a, b)
#define V_LO16(a, b) _mm256_unpacklo_epi16(a, b)
#define V_HI16(a, b) _mm256_unpackhi_epi16(a, b)
#define V_PACK32(a, b) _mm256_packs_epi32(a, b)
#define V_PACK16(a, b) _mm256_packus_epi16(a, b)
#define V_ADD16(a, b) _mm256_add_epi16(a, b)
#define V_SRA16(a, n) _mm256_srai_epi16(a, n)
#define V_SET16(n) _mm256_set1_epi16(n)
#define V_MIN16(a, b) _mm256_min_epi16(a, b)
#define V_MAX16(a, b) _mm256_max_epi16(a, b)
#define V_SET32(n) _mm256_set1_epi32(n)
#define V_OR(a, b) _mm256_or_si256(a, b)
#define V_SHL32(a, n) _mm256_slli_epi32(a, n)
#define F_LOAD(p) _mm256_loadu_ps(p)
#define F_SET(x) _mm256_set1_ps(x)
#define F_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define F_FROM(v) _mm256_cvtepi32_ps(v)
#define V_ROUND(f) _mm256_cvtps_epi32(f)
#define V_LO32(a, b) _mm256_unpacklo_epi32(a, b)
#define V_HI32(a, b) _mm256_unpackhi_epi32(a, b)
#define V_LO64(a, b) _mm256_unpacklo_epi64(a, b)
#define V_HI64(a, b) _mm256_unpackhi_epi64(a, b)
#define V_ANDNOT(a, b) _mm256_andnot_si256(a, b)
#define V_MAX32(a, b) _mm256_max_epi32(a, b)
#define V_PICK(a, b, yes, no) _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(a, b))

static inline V v_four(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
#ifdef AVX_VNNI
/* In assembly as in simd_avx512.h. */
static inline V v_dot(V sum, V u, V s) {
    __asm__(AVX_VNNI " %2, %1, %0" : "+x"(sum) : "x"(u), "xm"(s));
    return sum;
}
#define V_INPUT(v) (v)
#define V_START(p) V_ZERO()
#else
/* Inputs less 128 have at most 128 of magnitude, so two products (weights: -127..127) fit int16 and nothing saturates. */
static inline V v_dot(V sum, V u, V s) {
    const V pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(u), _mm256_sign_epi8(s, u));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define V_INPUT(v) _mm256_xor_si256(v, _mm256_set1_epi8(-128))
#define V_START(p) V_LOAD(p)
#endif
#define V_DOT(acc, u, s) v_dot(acc, u, s)
#define V_DOT_FOUR(acc, u, s) v_dot(acc, u, s)
static inline V v_broadcast(const uint8_t *p) { return V_INPUT(v_four(p)); }
/* The label head, see simd_avx512.h. */
static inline V v_even(V v, int shift) { return _mm256_maddubs_epi16(v, V_SET16((int16_t)(1 << shift))); }
static inline V v_odd(V v, int shift) { return _mm256_maddubs_epi16(v, V_SET16((int16_t)(256 << shift))); }
static inline V v_gather(const uint8_t *p, ptrdiff_t step) {
    const __m128i *first = (const void *)p, *second = (const void *)(p + step);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(first)), _mm_loadu_si128(second), 1);
}
static inline V v_dot_pair(V sum, V inputs, V weights) {
#ifdef AVX_VNNI
    __asm__(AVX_VNNI_16 " %2, %1, %0" : "+x"(sum) : "x"(weights), "xm"(inputs));
#else /* in assembly because GCC takes all products before it adds them, and keeps those in memory */
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(inputs, weights)));
#endif
    return sum;
}
#define V_DOT_ROW(sum, inputs, four, row) sum = v_dot_pair(sum, inputs, v_four((const uint8_t *)((four) + 4 * (row))))
static inline V v_natural(V v) { return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
static inline V v_widen(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)); }
#define NARROW_VECTORS 2
static inline void v_widen16(const uint8_t *p, V *v) {
    v[0] = v_widen(p);
    v[1] = v_widen(p + 8);
}
/* 16 int32 -> 16 int16 in order, saturated */
static inline V v_shorts16(const V *v) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(v[0], v[1]), 0xD8); }
static inline __m128i v_narrow16(const V *v) {
    const V shorts = v_shorts16(v);
    return _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
}
typedef __m128i Q;
#define Q_LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define Q_STORE(p, q) _mm_storeu_si128((__m128i *)(void *)(p), q)
#define Q_MAX8(a, b) _mm_max_epu8(a, b)
static inline void s16_store16(int16_t *p, const V *v) {
    V_STORE(p, V_MAX16(V_MIN16(v_shorts16(v), V_SET16(S16_LIMIT)), V_SET16(-S16_LIMIT)));
}
/* Vectors `even` and `odd` of s16 hold a pixel of 16 channels each -> both pixels. */
static inline V v_alternate16(V even, V odd) { return _mm256_permute4x64_epi64(_mm256_packus_epi16(even, odd), 0xD8); }
static inline void v_store_part(uint8_t *p, V v, int bytes) {
    __m128i rest = _mm256_castsi256_si128(v);
    if (bytes >= 16) {
        Q_STORE(p, rest);
        rest = _mm256_extracti128_si256(v, 1);
        p += 16;
        bytes -= 16;
    }
    if (bytes > 0) __builtin_memcpy(p, &rest, (size_t)bytes);
}
static inline void v_store_pairs(uint8_t *p, V v) {
    Q_STORE(p, _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
static inline void v_store_single(uint8_t *p, V v) {
    const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(pairs, pairs));
}
