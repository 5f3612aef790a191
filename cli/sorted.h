/* Sorts measured values, so that a median is an element. */
#ifndef CLI_SORTED_H
#define CLI_SORTED_H

#include <stddef.h>

/* Ascending, in place. No NaN. */
void sorted_doubles(double *values, size_t n);

#endif
