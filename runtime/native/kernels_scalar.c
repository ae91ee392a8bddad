#include "kernels.h"
#include "simd_generic.h"

static int available(void) { return 1; }
#define KERNELS gs_kernels_scalar
#define KERNELS_NAME "scalar"
#include "kernels_body.h"
