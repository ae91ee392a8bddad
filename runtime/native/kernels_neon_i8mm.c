#include "kernels.h"
#ifdef GS_NEON_I8MM
#include <sys/auxv.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+i8mm")
#endif
#define NEON_I8MM
#include "simd_neon.h"

static int available(void) { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; } /* HWCAP2_I8MM */
#define KERNELS gs_kernels_neon_i8mm
#define KERNELS_NAME "neon-i8mm"
#include "kernels_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
