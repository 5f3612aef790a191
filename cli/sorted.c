/* Sorts measured values. */
#include "cli/sorted.h"

#include <stdlib.h>

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void sorted_doubles(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare_doubles);
}
