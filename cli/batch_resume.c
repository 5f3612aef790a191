/* Reads an existing output file so that a second run does nothing twice. */
#include "cli/batch_resume.h"

#include "cli/batch_hash.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SCAN_BYTES = 1 << 20 };

static enum status not_ours(const char *origin, uint64_t line, struct err *err)
{
    return err_set(err, STATUS_CORRUPT,
                   "%s line %llu is not an answer of `carousel batch`; nothing was changed: choose "
                   "another output file",
                   origin, (unsigned long long)line);
}

static enum status mark_line(const json_t *root, const char *origin, uint64_t line,
                             struct batch_ids *ids, struct batch_resume *out, struct err *err)
{
    const json_t *custom_id = json_object_get(root, "custom_id");
    const json_t *error = json_object_get(root, "error");
    const json_t *code = json_object_get(error, "code");
    if (!json_is_string(custom_id) ||
        (json_is_object(json_object_get(root, "response")) ? !json_is_null(error)
                                                           : !json_is_string(code)))
        return not_ours(origin, line, err);
    const json_t *hash = json_object_get(root, "input_hash");
    uint64_t input_hash = 0;
    if (hash != NULL &&
        (!json_is_string(hash) || !batch_hash_read(json_string_value(hash), &input_hash)))
        return not_ours(origin, line, err);
    struct batch_id *id;
    enum status status = batch_ids_get(ids, json_string_value(custom_id), &id, err);
    if (status != STATUS_OK)
        return status;
    if (code != NULL && strcmp(json_string_value(code), BATCH_CODE_DUPLICATE) == 0) {
        id->n_duplicates++;
        out->n_answers++;
    } else if (code == NULL || strcmp(json_string_value(code), BATCH_CODE_SERVER) != 0) {
        id->is_answered = true;
        id->has_hash = hash != NULL;
        id->input_hash = input_hash;
        out->n_answers++;
    }
    return STATUS_OK;
}

/* Tells our files from others before anything is cut off: a whole line, or the beginning of one
 * that was not written to its end. */
static bool starts_like_ours(const char *text, size_t n, bool is_whole)
{
    /* Earlier versions wrote a space. */
    static const char *const starts[] = {"{\"id\":\"batch_req_", "{\"id\": \"batch_req_"};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        size_t n_start = strlen(starts[i]);
        size_t compared = n < n_start && !is_whole ? n : n_start;
        if (n >= compared && memcmp(text, starts[i], compared) == 0)
            return true;
    }
    return false;
}

enum status batch_resume_scan(const char *text, size_t len_bytes, const char *origin,
                              struct batch_ids *ids, struct batch_resume *out,
                              size_t *complete_bytes, struct err *err)
{
    size_t at = 0;
    while (at < len_bytes) {
        const char *end = memchr(text + at, '\n', len_bytes - at);
        size_t n = end != NULL ? (size_t)(end - (text + at)) : len_bytes - at;
        if (!starts_like_ours(text + at, n, end != NULL))
            return not_ours(origin, out->n_lines + 1, err);
        if (end == NULL)
            break;
        /* A model may have said a NUL. */
        json_t *root = json_loadb(text + at, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        if (root == NULL)
            return not_ours(origin, out->n_lines + 1, err);
        enum status status = mark_line(root, origin, out->n_lines + 1, ids, out, err);
        json_decref(root);
        if (status != STATUS_OK)
            return status;
        out->n_lines++;
        at += n + 1;
    }
    *complete_bytes = at;
    return STATUS_OK;
}

/* A run that was just killed may have ranks that are still ending. */
static enum status lock_file(int fd, const char *path, uint32_t wait_ms, struct err *err)
{
    const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
    for (uint32_t waited = 0;; waited += 50) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return STATUS_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return err_set(err, STATUS_IO, "cannot lock %s: %s", path, strerror(errno));
        if (waited >= wait_ms)
            return err_set(err, STATUS_FULL, "%s is being written by another run", path);
        nanosleep(&pause, NULL);
    }
}

/* Scans in pieces that end at a newline; *kept_bytes is where the last complete line ends. */
static enum status scan_file(int fd, const char *path, struct batch_ids *ids,
                             struct batch_resume *out, uint64_t *kept_bytes, struct err *err)
{
    size_t cap = SCAN_BYTES, held = 0;
    char *buffer = malloc(cap);
    enum status status = STATUS_OK;
    *kept_bytes = 0;
    while (status == STATUS_OK) {
        if (buffer == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes of %s", cap, path);
        ssize_t n = read(fd, buffer + held, cap - held);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = err_set(err, STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (n <= 0)
            break;
        held += (size_t)n;
        size_t complete = 0;
        status = batch_resume_scan(buffer, held, path, ids, out, &complete, err);
        if (status != STATUS_OK)
            break;
        memmove(buffer, buffer + complete, held - complete);
        held -= complete;
        *kept_bytes += complete;
        if (held == cap) {
            char *grown = realloc(buffer, cap *= 2);
            if (grown == NULL)
                free(buffer);
            buffer = grown;
        }
    }
    free(buffer);
    out->cut_bytes = held;
    return status;
}

enum status batch_resume_open(const char *path, uint32_t lock_wait_ms, struct batch_ids *ids,
                              struct batch_resume *out, int *fd, struct err *err)
{
    *out = (struct batch_resume){0};
    int file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0)
        return err_set(err, STATUS_IO, "cannot open %s for writing: %s", path, strerror(errno));
    struct stat st;
    uint64_t kept_bytes = 0;
    enum status status = STATUS_OK;
    if (fstat(file, &st) != 0)
        status = err_set(err, STATUS_IO, "cannot stat %s: %s", path, strerror(errno));
    /* A pipe or /dev/null has nothing to resume from. */
    else if (S_ISREG(st.st_mode)) {
        status = lock_file(file, path, lock_wait_ms, err);
        if (status == STATUS_OK)
            status = scan_file(file, path, ids, out, &kept_bytes, err);
        if (status == STATUS_OK && out->cut_bytes > 0 && ftruncate(file, (off_t)kept_bytes) != 0)
            status = err_set(err, STATUS_IO, "cannot cut the unfinished last line of %s: %s", path,
                             strerror(errno));
    }
    if (status != STATUS_OK) {
        close(file);
        return status;
    }
    *fd = file;
    return STATUS_OK;
}
