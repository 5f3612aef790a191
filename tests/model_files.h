/* Small model directories for tests: a temporary directory, files in it, and a tiny checkpoint
 * whose parts a test can bend before it is written. */
#ifndef TESTS_MODEL_FILES_H
#define TESTS_MODEL_FILES_H

#include "tests/unit.h"

#include <dirent.h>
#include <unistd.h>

/* A new directory under TMPDIR or /tmp; the caller frees with model_files_remove. */
static inline char *model_files_dir(void)
{
    const char *base = getenv("TMPDIR");
    char *dir = NULL;
    assert_true(asprintf(&dir, "%s/carousel-test-XXXXXX", base != NULL ? base : "/tmp") > 0);
    assert_non_null(mkdtemp(dir));
    return dir;
}

static inline void model_files_remove(char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
    free(dir);
}

static inline void model_files_write(const char *dir, const char *name, const void *bytes,
                                     size_t len)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* What a safetensors file is made of: a header text and data_bytes bytes of data. The caller frees.
 */
static inline unsigned char *model_files_tensors(const char *header, size_t data_bytes, size_t *len)
{
    size_t n = strlen(header);
    *len = 8 + n + data_bytes;
    unsigned char *bytes = calloc(1, *len);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(bytes + 8, header, n);
    return bytes;
}

/* The text with the first `from` replaced by `to`; fails the test when there is none. The caller
 * frees. */
static inline char *model_files_replace(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (at == NULL)
        fail_msg("nothing to replace: \"%s\"", from);
    size_t before = (size_t)(at - text), size = strlen(text) + strlen(to) + 1;
    char *out = malloc(size);
    assert_non_null(out);
    snprintf(out, size, "%.*s%s%s", (int)before, text, to, text + before + strlen(from));
    return out;
}

#define assert_contains(text, part)                                                                \
    do {                                                                                           \
        if (strstr(text, part) == NULL)                                                            \
            fail_msg("\"%s\" does not contain \"%s\"", text, part);                                \
    } while (0)

#endif
