/* Sets of records made by hand, and the text of the file that is made of a set. */
#ifndef TESTS_TRACE_FILE_H
#define TESTS_TRACE_FILE_H

#include "tests/unit.h"

#include "coordinator/trace_set.h"

#include <stdlib.h>
#include <unistd.h>

static inline struct trace_set *trace_file_set(uint32_t n_ranks)
{
    struct trace_set *set;
    struct err err;
    assert_int_equal(trace_set_create(n_ranks, &set, &err), STATUS_OK);
    return set;
}

static inline void trace_file_add(struct trace_set *set, uint32_t rank, struct trace_record record)
{
    struct err err;
    assert_int_equal(trace_set_append(set, rank, &record, 1, &err), STATUS_OK);
}

static inline char *trace_file_read(const char *path, size_t *len)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t room = 1 << 24;
    char *text = malloc(room);
    assert_non_null(text);
    *len = fread(text, 1, room - 1, file);
    assert_true(*len < room - 1);
    text[*len] = '\0';
    fclose(file);
    return text;
}

static inline char *trace_file_text(const struct trace_set *set, size_t *len)
{
    char path[] = "/tmp/carousel_trace_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct err err = {0};
    if (trace_set_write(set, path, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    char *text = trace_file_read(path, len);
    unlink(path);
    return text;
}

#endif
