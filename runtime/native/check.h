/* What a program must keep to. */
#ifndef GRADSEG_CHECK_H
#define GRADSEG_CHECK_H
#include "program.h"

/* NULL, or what is wrong with a program's tensors and operators. */
const char *gs_check(const gs_program *program);
#endif
