/* AArch64: vectors of 128 bits. With I8MM dot products take uint8 by int8; without it int8 by int8: inputs less 128. */
#include <arm_neon.h>
#define LANES 1
#define PIXELS 6 /* of a tile: 24 sums, 4 weights and a few inputs fit 32 registers */
#define NARROW_PIXELS 6
typedef int8x16_t V;
typedef float32x4_t F;
#define V_ZERO() vdupq_n_s8(0)
#define V_LOAD(p) vld1q_s8((const int8_t *)(const void *)(p))
#define V_STORE(p, v) vst1q_s8((int8_t *)(void *)(p), v)
#define V_16(v) vreinterpretq_s16_s8(v)
#define V_32(v) vreinterpretq_s32_s8(v)
#define V_FROM16(v) vreinterpretq_s8_s16(v)
#define V_FROM32(v) vreinterpretq_s8_s32(v)
#define V_LO8(a, b) vzip1q_s8(a, b)
#define V_HI8(a, b) vzip2q_s8(a, b)
#define V_LO16(a, b) V_FROM16(vzip1q_s16(V_16(a), V_16(b)))
#define V_HI16(a, b) V_FROM16(vzip2q_s16(V_16(a), V_16(b)))
#define V_PACK32(a, b) V_FROM16(vqmovn_high_s32(vqmovn_s32(V_32(a)), V_32(b)))
#define V_PACK16(a, b) vreinterpretq_s8_u8(vqmovun_high_s16(vqmovun_s16(V_16(a)), V_16(b)))
#define V_ADD16(a, b) V_FROM16(vaddq_s16(V_16(a), V_16(b)))
#define V_SRA16(a, n) V_FROM16(vshrq_n_s16(V_16(a), n))
#define V_SET16(n) V_FROM16(vdupq_n_s16(n))
#define V_MIN16(a, b) V_FROM16(vminq_s16(V_16(a), V_16(b)))
#define V_MAX16(a, b) V_FROM16(vmaxq_s16(V_16(a), V_16(b)))
#define V_SET32(n) V_FROM32(vdupq_n_s32(n))
#define V_OR(a, b) vorrq_s8(a, b)
#define V_SHL32(a, n) V_FROM32(vshlq_n_s32(V_32(a), n))
#define F_LOAD(p) vld1q_f32(p)
#define F_SET(x) vdupq_n_f32(x)
#define F_FMA(a, b, c) vfmaq_f32(c, a, b)
#define F_FROM(v) vcvtq_f32_s32(V_32(v))
#define V_ROUND(f) V_FROM32(vcvtnq_s32_f32(f))
#define V_LO32(a, b) V_FROM32(vzip1q_s32(V_32(a), V_32(b)))
#define V_HI32(a, b) V_FROM32(vzip2q_s32(V_32(a), V_32(b)))
#define V_LO64(a, b) vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)))
#define V_HI64(a, b) vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)))
#define V_ANDNOT(a, b) vbicq_s8(b, a)
#define V_ADD32(a, b) V_FROM32(vaddq_s32(V_32(a), V_32(b)))
#define V_MAX32(a, b) V_FROM32(vmaxq_s32(V_32(a), V_32(b)))
#define V_PICK(a, b, yes, no) V_FROM32(vbslq_s32(vcgtq_s32(V_32(a), V_32(b)), V_32(yes), V_32(no)))

/* In assembly because compilers offer the intrinsics only to files built for such CPUs, and not to a single function. */
#ifdef NEON_I8MM
#define NEON_DOT "usdot"
#define HEAD_BYTES_START start /* of a gs_head: what sums of such inputs begin with */
#define V_INPUT(v) (v)
#define V_START(p) V_ZERO()
static inline V v_dot(V sum, V u, V s) {
    __asm__("usdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(u), "w"(s));
    return sum;
}
static inline V v_dot_four(V sum, V u, V s) {
    __asm__("sudot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(s), "w"(u));
    return sum;
}
#else
#define NEON_DOT "sdot"
#define HEAD_BYTES_START start_less
#define V_INPUT(v) veorq_s8(v, vdupq_n_s8(-128))
#define V_START(p) V_LOAD(p)
static inline V v_dot(V sum, V u, V s) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(u), "w"(s));
    return sum;
}
static inline V v_dot_four(V sum, V u, V s) {
    __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(s), "w"(u));
    return sum;
}
#endif
#define V_DOT(acc, u, s) v_dot(acc, u, s)
#define V_DOT_FOUR(acc, u, s) v_dot_four(acc, u, s)
/* Four bytes in the first lane alone: dot products by element need no more, and such a load costs no vector operation. */
typedef struct {
    uint8_t bytes[4];
} v_bytes4;
static inline V v_broadcast(const uint8_t *p) {
    V four;
    __asm__("ldr %s0, %1" : "=w"(four) : "m"(*(const v_bytes4 *)(const void *)p));
    return V_INPUT(four);
}
/* The label head, in dot products of bytes (twice as many at once as of int16): four channels in the weights' order. */
static inline V v_four_bytes(V v) {
    const uint8x16_t places = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    return V_INPUT(vqtbl1q_s8(v, places));
}
#define v_gather(p, step) V_LOAD(p)
/* Weights of four rows as signed bytes: 256 * upper + lower. */
static inline V v_upper(const int16_t *p) { return vrshrn_high_n_s16(vrshrn_n_s16(vld1q_s16(p), 8), vld1q_s16(p + 8), 8); }
static inline V v_lower(const int16_t *p) { return vmovn_high_s16(vmovn_s16(vld1q_s16(p)), vld1q_s16(p + 8)); }
static inline V v_shl32(V v, int bits) { return V_FROM32(vshlq_s32(V_32(v), vdupq_n_s32(bits))); }
#define V_DOT_ROW(sum, inputs, four, row) \
    __asm__(NEON_DOT " %0.4s, %1.16b, %2.4b[" #row "]" : "+w"(sum) : "w"(inputs), "w"(four))
static inline V v_natural(V v) { return v; }
static inline V v_widen(const uint8_t *p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vreinterpretq_s8_u32(vmovl_u16(vget_low_u16(wide)));
}
#define NARROW_VECTORS 4
static inline void v_widen16(const uint8_t *p, V *v) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    v[0] = vreinterpretq_s8_u32(vmovl_u16(vget_low_u16(low)));
    v[1] = vreinterpretq_s8_u32(vmovl_high_u16(low));
    v[2] = vreinterpretq_s8_u32(vmovl_u16(vget_low_u16(high)));
    v[3] = vreinterpretq_s8_u32(vmovl_high_u16(high));
}
static inline V v_narrow16(const V *v) { return V_PACK16(V_PACK32(v[0], v[1]), V_PACK32(v[2], v[3])); }
typedef V Q;
#define Q_LOAD(p) V_LOAD(p)
#define Q_STORE(p, q) V_STORE(p, q)
#define Q_MAX8(a, b) vreinterpretq_s8_u8(vmaxq_u8(vreinterpretq_u8_s8(a), vreinterpretq_u8_s8(b)))
static inline void s16_store16(int16_t *p, const V *v) {
    const V limit = V_SET16(S16_LIMIT), low = V_SET16(-S16_LIMIT);
    V_STORE(p, V_MAX16(V_MIN16(V_PACK32(v[0], v[1]), limit), low));
    V_STORE(p + 8, V_MAX16(V_MIN16(V_PACK32(v[2], v[3]), limit), low));
}
static inline void v_store_part(uint8_t *p, V v, int bytes) { __builtin_memcpy(p, &v, (size_t)(bytes < 16 ? bytes : 16)); }
static inline void v_store_pairs(uint8_t *p, V v) {
    vst1_u8(p, vreinterpret_u8_u16(vmovn_u32(vreinterpretq_u32_s8(v))));
}
static inline void v_store_single(uint8_t *p, V v) {
    const uint16x4_t pairs = vmovn_u32(vreinterpretq_u32_s8(v));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(pairs, pairs))), 0);
    __builtin_memcpy(p, &four, 4);
}
