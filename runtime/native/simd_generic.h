/* Vectors of 128 bits in the compiler's own terms: any CPU. */
#include <math.h>
#define LANES 1
#define PIXELS 2
#define NARROW_PIXELS 2
typedef int8_t V __attribute__((vector_size(16)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));
typedef int16_t S16x8 __attribute__((vector_size(16)));
typedef int32_t S32x4 __attribute__((vector_size(16)));
typedef float F __attribute__((vector_size(16)));
typedef V Q;

static inline V v_load(const void *p) {
    V v;
    __builtin_memcpy(&v, p, 16);
    return v;
}
static inline void v_store(void *p, V v) { __builtin_memcpy(p, &v, 16); }
static inline F f_load(const float *p) {
    F f;
    __builtin_memcpy(&f, p, 16);
    return f;
}
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector((V)(a), (V)(b), __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle((V)(a), (V)(b), (U8x16){__VA_ARGS__})
#endif
#define V_ZERO() ((V){0})
#define V_LOAD(p) v_load(p)
#define V_STORE(p, v) v_store(p, v)
#define V_LO8(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define V_HI8(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define V_LO16(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23)
#define V_HI16(a, b) SHUFFLE(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31)
#define V_ADD16(a, b) ((V)((S16x8)(a) + (S16x8)(b)))
#define V_SRA16(a, n) ((V)((S16x8)(a) >> (n)))
#define V_SET16(n) ((V)((S16x8){0} + (int16_t)(n)))
#define V_MIN16(a, b) v_choose((V)((S16x8)(a) < (S16x8)(b)), a, b)
#define V_MAX16(a, b) v_choose((V)((S16x8)(a) > (S16x8)(b)), a, b)
#define V_SET32(n) ((V)((S32x4){0} + (n)))
#define V_OR(a, b) ((a) | (b))
#define V_SHL32(a, n) ((V)((S32x4)(a) << (n)))
#define F_LOAD(p) f_load(p)
#define F_SET(x) ((F){0} + (x))
#define F_FROM(v) __builtin_convertvector((S32x4)(v), F)
#define V_LO32(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23)
#define V_HI32(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31)
#define V_LO64(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define V_HI64(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define V_ANDNOT(a, b) (~(a) & (b))
#define V_MAX32(a, b) V_PICK(a, b, a, b)
#define V_PICK(a, b, yes, no) v_choose((V)((S32x4)(a) > (S32x4)(b)), yes, no)

static inline V v_choose(V first, V a, V b) { return (first & a) | (~first & b); }
static inline F f_fma(F a, F b, F c) {
    F r;
    for (int i = 0; i < 4; i++) r[i] = fmaf(a[i], b[i], c[i]);
    return r;
}
#define F_FMA(a, b, c) f_fma(a, b, c)
static inline V v_round(F f) { /* as the default mode rounds, half to even; saturated */
    S32x4 r;
    for (int i = 0; i < 4; i++) r[i] = f[i] >= 2147483520.0f ? INT32_MAX : f[i] <= -2147483648.0f ? INT32_MIN : (int32_t)rintf(f[i]);
    return (V)r;
}
#define V_ROUND(f) v_round(f)
static inline V v_dot(V acc, V u, V s) {
    S32x4 r = (S32x4)acc;
    for (int i = 0; i < 16; i++) r[i / 4] += (int32_t)(uint8_t)u[i] * s[i];
    return (V)r;
}
#define V_DOT(acc, u, s) v_dot(acc, u, s)
#define V_DOT_FOUR(acc, u, s) v_dot(acc, u, s)
#define V_INPUT(v) (v)
#define V_START(p) V_ZERO()
/* The label head: pixels of 4 bytes, times 2 to the shift: bytes 0 and 2, or 1 and 3, as int16. */
static inline V v_even(V v, int shift) {
    S16x8 r;
    for (int i = 0; i < 8; i++) r[i] = (int16_t)((uint8_t)v[2 * i] << shift);
    return (V)r;
}
static inline V v_odd(V v, int shift) {
    S16x8 r;
    for (int i = 0; i < 8; i++) r[i] = (int16_t)((uint8_t)v[2 * i + 1] << shift);
    return (V)r;
}
#define v_gather(p, step) v_load(p)
static inline V v_dot_pair(V sum, V inputs, const int16_t *weights) {
    const S16x8 pairs = (S16x8)inputs;
    S32x4 r = (S32x4)sum;
    for (int i = 0; i < 4; i++) r[i] += pairs[2 * i] * weights[0] + pairs[2 * i + 1] * weights[1];
    return (V)r;
}
#define V_DOT_ROW(sum, inputs, four, row) sum = v_dot_pair(sum, inputs, (four) + 4 * (row))
static inline int32_t limited(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }
static inline V v_pack32(V a, V b) {
    S16x8 r;
    for (int i = 0; i < 4; i++) {
        r[i] = (int16_t)limited(((S32x4)a)[i], INT16_MIN, INT16_MAX);
        r[i + 4] = (int16_t)limited(((S32x4)b)[i], INT16_MIN, INT16_MAX);
    }
    return (V)r;
}
static inline V v_pack16(V a, V b) {
    U8x16 r;
    for (int i = 0; i < 8; i++) {
        r[i] = (uint8_t)limited(((S16x8)a)[i], 0, 255);
        r[i + 8] = (uint8_t)limited(((S16x8)b)[i], 0, 255);
    }
    return (V)r;
}
#define V_PACK32(a, b) v_pack32(a, b)
#define V_PACK16(a, b) v_pack16(a, b)
static inline V v_broadcast(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return V_SET32(four);
}
static inline V v_natural(V v) { return v; }
static inline V v_widen(const uint8_t *p) {
    S32x4 r;
    for (int i = 0; i < 4; i++) r[i] = p[i];
    return (V)r;
}
#define NARROW_VECTORS 4
static inline void v_widen16(const uint8_t *p, V *v) {
    for (int i = 0; i < 4; i++) v[i] = v_widen(p + 4 * i);
}
static inline Q v_narrow16(const V *v) { return v_pack16(v_pack32(v[0], v[1]), v_pack32(v[2], v[3])); }
#define Q_LOAD(p) v_load(p)
#define Q_STORE(p, q) v_store(p, q)
static inline Q q_max8(Q a, Q b) {
    const V greater = (V)((U8x16)a > (U8x16)b);
    return (greater & a) | (~greater & b);
}
#define Q_MAX8(a, b) q_max8(a, b)
static inline void s16_store16(int16_t *p, const V *v) {
    for (int i = 0; i < 16; i++) p[i] = (int16_t)limited(((S32x4)v[i / 4])[i % 4], -S16_LIMIT, S16_LIMIT);
}
static inline void v_store_part(uint8_t *p, V v, int bytes) { __builtin_memcpy(p, &v, (size_t)(bytes < 16 ? bytes : 16)); }
static inline void v_store_pairs(uint8_t *p, V v) {
    for (int i = 0; i < 4; i++) {
        p[2 * i] = (uint8_t)((S32x4)v)[i];
        p[2 * i + 1] = (uint8_t)(((S32x4)v)[i] >> 8);
    }
}
static inline void v_store_single(uint8_t *p, V v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)((S32x4)v)[i];
}
