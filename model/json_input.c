/* Turns untrusted JSON text into a strict jansson object. */
#include "model/json_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status read_all(int fd, const char *path, char *text, size_t len, struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = read(fd, text + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0)
            return err_set(err, STATUS_IO, "%s became shorter while it was read", path);
        done += (size_t)n;
    }
    return STATUS_OK;
}

enum status json_input_read(const char *path, size_t max_bytes, char **text, size_t *len_bytes,
                            struct err *err)
{
    enum status status = STATUS_OK;
    char *buffer = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return err_set(err, STATUS_NOT_FOUND, "%s does not exist", path);
    if (fd < 0)
        return err_set(err, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0) {
        status = err_set(err, STATUS_IO, "cannot stat %s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        status = err_set(err, STATUS_IO, "%s is not a regular file", path);
        goto out;
    }
    if (info.st_size == 0 || (uint64_t)info.st_size > max_bytes) {
        status = err_set(err, STATUS_CORRUPT, "%s has %lld bytes, expected 1 to %zu", path,
                         (long long)info.st_size, max_bytes);
        goto out;
    }
    buffer = malloc((size_t)info.st_size);
    if (buffer == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the %lld bytes of %s",
                         (long long)info.st_size, path);
        goto out;
    }
    status = read_all(fd, path, buffer, (size_t)info.st_size, err);
    if (status != STATUS_OK)
        goto out;
    *text = buffer;
    *len_bytes = (size_t)info.st_size;
    buffer = NULL;
out:
    free(buffer);
    close(fd);
    return status;
}

/* jansson quotes the offending text, which may hold line breaks and terminal escapes. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || (unsigned char)*text >= 0x7f)
            *text = '?';
}

/* Nor does a user know jansson's flags. */
static void drop_advice(char *text)
{
    static const char advice[] = " without JSON_ALLOW_NUL";
    char *at = strstr(text, advice);
    if (at != NULL)
        memmove(at, at + strlen(advice), strlen(at + strlen(advice)) + 1);
}

enum status json_input_parse(const char *text, size_t len_bytes, const char *origin, json_t **out,
                             struct err *err)
{
    if (len_bytes == 0)
        return err_set(err, STATUS_CORRUPT, "%s is empty, expected a JSON object", origin);
    json_error_t problem;
    json_t *root = json_loadb(text, len_bytes, JSON_REJECT_DUPLICATES, &problem);
    if (root == NULL) {
        if (json_error_code(&problem) == json_error_out_of_memory)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the JSON of %s", origin);
        make_printable(problem.text);
        drop_advice(problem.text);
        return err_set(err, STATUS_CORRUPT, "%s is not valid JSON: line %d, column %d: %s", origin,
                       problem.line, problem.column, problem.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, STATUS_CORRUPT, "%s holds a JSON array, expected an object", origin);
    }
    *out = root;
    return STATUS_OK;
}

const char *json_input_show(const json_t *value, char shown[JSON_INPUT_SHOWN_BYTES])
{
    static const char dots[] = "...";
    const size_t room = JSON_INPUT_SHOWN_BYTES - sizeof dots;
    memset(shown, 0, JSON_INPUT_SHOWN_BYTES);
    if (value == NULL)
        return memcpy(shown, "nothing", sizeof "nothing");
    size_t needed =
        json_dumpb(value, shown, room, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT);
    /* jansson writes whole pieces as long as they fit; a long string is a piece of its own. */
    if (needed > room)
        strcat(shown, dots);
    return shown;
}
