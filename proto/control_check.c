/* Refuses a field of a peer that is out of range, with its name, its value and what is allowed. */
#include "proto/control_wire.h"

#include <inttypes.h>

enum status control_check_range(const char *field, uint64_t value, uint64_t low, uint64_t high,
                                struct err *err)
{
    if (value >= low && value <= high)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "%s is %" PRIu64 "; allowed is %" PRIu64 "..%" PRIu64,
                   field, value, low, high);
}

enum status control_check_float(const char *field, float value, float low, float high,
                                struct err *err)
{
    if (value >= low && value <= high)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "%s is %g; allowed is [%g, %g]", field, (double)value,
                   (double)low, (double)high);
}

enum status control_check_id(const char *field, int32_t id, struct err *err)
{
    if (id >= 0)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "%s is %" PRId32 "; a token id is not negative", field, id);
}

enum status control_check_sequence(const char *field, uint64_t sequence, struct err *err)
{
    if (sequence != 0)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "%s is 0, which no sequence has", field);
}

enum status control_check_pairs(const char *field, size_t n_ids, size_t n_values, size_t max,
                                struct err *err)
{
    if (n_ids != n_values)
        return err_set(err, STATUS_CORRUPT, "%s has %zu ids and %zu values", field, n_ids,
                       n_values);
    if (n_ids > max)
        return err_set(err, STATUS_CORRUPT, "%s has %zu entries; at most %zu fit", field, n_ids,
                       max);
    return STATUS_OK;
}
