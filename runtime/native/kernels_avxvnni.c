#include "kernels.h"
#ifdef GS_AVX_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif
#include <cpuid.h>
#define AVX_VNNI "%{vex%} vpdpbusd"
#define AVX_VNNI_16 "%{vex%} vpdpwssd"
#include "simd_avx2.h"

static int available(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a >> 4 & 1);
}
#define KERNELS gs_kernels_avxvnni
#define KERNELS_NAME "avx-vnni"
#include "kernels_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
