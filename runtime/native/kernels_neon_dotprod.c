#include "kernels.h"
#ifdef GS_NEON
#include <sys/auxv.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "simd_neon.h"

static int available(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
#define KERNELS gs_kernels_neon_dotprod
#define KERNELS_NAME "neon-dotprod"
#include "kernels_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
