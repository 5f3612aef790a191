/* Tells whether a key is one of the file's, in a time that says nothing about the file's keys.
 *
 * Kept are SHA-256 digests, not keys: all have one length, so that a comparison is the same work
 * for every key, and a core dump shows none. Whoever guesses a key cannot choose its digest, so
 * even a comparison that leaked its progress would not lead from byte to byte; CRYPTO_memcmp leaks
 * none. */
#include "coordinator/api_keys.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    NAME_MAX_BYTES = 64,
    FILE_MAX_BYTES = API_KEYS_MAX * (API_KEY_MAX_BYTES + NAME_MAX_BYTES) * 2 /* with comments */
};

struct key {
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char name[NAME_MAX_BYTES + 1];
};

struct api_keys {
    size_t n;
    struct key keys[API_KEYS_MAX];
};

/* Reads all of the file into *out, terminated; the caller wipes and frees it. */
static enum status read_all(const char *path, char **out, size_t *len_bytes, struct err *err)
{
    struct stat st;
    char *bytes = NULL;
    size_t n = 0;
    enum status status = STATUS_IO;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                       "cannot open the key file %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        err_set(err, STATUS_IO, "cannot read the key file %s: %s", path, strerror(errno));
        goto out;
    }
    if ((st.st_mode & (S_IROTH | S_IWOTH)) != 0) {
        status = err_set(err, STATUS_INVALID,
                         "everybody on this host can %s the key file %s (mode %04o): chmod 600 it",
                         (st.st_mode & S_IROTH) != 0 ? "read" : "write", path,
                         (unsigned)st.st_mode & 07777u);
        goto out;
    }
    bytes = malloc(FILE_MAX_BYTES + 1);
    if (bytes == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory to read the key file %s", path);
        goto out;
    }
    while (n <= FILE_MAX_BYTES) {
        ssize_t done = read(fd, bytes + n, FILE_MAX_BYTES + 1 - n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            err_set(err, STATUS_IO, "cannot read the key file %s: %s", path, strerror(errno));
            goto out;
        }
        if (done == 0)
            break;
        n += (size_t)done;
    }
    if (n > FILE_MAX_BYTES) {
        status = err_set(err, STATUS_INVALID, "the key file %s is larger than %d bytes", path,
                         FILE_MAX_BYTES);
        goto out;
    }
    *out = bytes;
    *len_bytes = n;
    bytes = NULL;
    status = STATUS_OK;
out:
    if (bytes != NULL)
        explicit_bzero(bytes, n);
    free(bytes);
    close(fd);
    return status;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next word of [*at, end); its length, 0 when there is none. */
static size_t take_word(const char **at, const char *end, const char **word)
{
    while (*at < end && is_blank(**at))
        ++*at;
    *word = *at;
    while (*at < end && !is_blank(**at))
        ++*at;
    return (size_t)(*at - *word);
}

/* No message shows a piece of a line: it could be a key. */
static enum status take_line(struct api_keys *keys, const char *path, unsigned n_line,
                             const char *line, size_t len_bytes, struct err *err)
{
    const char *at = line, *end = line + len_bytes, *words[3];
    size_t lengths[3];
    for (int i = 0; i < 3; i++)
        lengths[i] = take_word(&at, end, &words[i]);
    if (lengths[0] == 0 || words[0][0] == '#')
        return STATUS_OK;
    for (size_t i = 0; i < len_bytes; i++)
        if (!is_blank(line[i]) && (line[i] < 0x21 || line[i] > 0x7e))
            return err_set(err, STATUS_INVALID,
                           "%s, line %u: byte 0x%02x in column %zu is not printable ASCII", path,
                           n_line, (unsigned char)line[i], i + 1);
    if (lengths[2] > 0)
        return err_set(err, STATUS_INVALID,
                       "%s, line %u: more than two words: a line is \"key\" or \"name key\"", path,
                       n_line);
    bool has_name = lengths[1] > 0;
    const char *key = words[has_name];
    size_t key_bytes = lengths[has_name];
    if (key_bytes > API_KEY_MAX_BYTES)
        return err_set(err, STATUS_INVALID, "%s, line %u: a key of %zu bytes; at most %d", path,
                       n_line, key_bytes, API_KEY_MAX_BYTES);
    if (has_name && lengths[0] > NAME_MAX_BYTES)
        return err_set(err, STATUS_INVALID, "%s, line %u: a name of %zu bytes; at most %d", path,
                       n_line, lengths[0], NAME_MAX_BYTES);
    if (keys->n == API_KEYS_MAX)
        return err_set(err, STATUS_INVALID, "%s, line %u: more than %d keys", path, n_line,
                       API_KEYS_MAX);
    struct key *k = &keys->keys[keys->n];
    SHA256((const unsigned char *)key, key_bytes, k->digest);
    for (size_t i = 0; i < keys->n; i++)
        if (memcmp(keys->keys[i].digest, k->digest, sizeof k->digest) == 0)
            return err_set(err, STATUS_INVALID,
                           "%s, line %u: the key of %s again: give each client its own", path,
                           n_line, keys->keys[i].name);
    if (has_name)
        snprintf(k->name, sizeof k->name, "%.*s", (int)lengths[0], words[0]);
    else
        snprintf(k->name, sizeof k->name, "key-%zu", keys->n + 1);
    keys->n++;
    return STATUS_OK;
}

enum status api_keys_load(const char *path, struct api_keys **out, struct err *err)
{
    char *bytes = NULL;
    size_t len_bytes = 0;
    enum status status = read_all(path, &bytes, &len_bytes, err);
    if (status != STATUS_OK)
        return status;
    struct api_keys *keys = calloc(1, sizeof *keys);
    if (keys == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the keys of %s", path);
        goto out;
    }
    const char *at = bytes, *end = bytes + len_bytes;
    for (unsigned n_line = 1; at < end && status == STATUS_OK; n_line++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline != NULL ? newline : end;
        status = take_line(keys, path, n_line, at, (size_t)(stop - at), err);
        at = stop + 1;
    }
    if (status == STATUS_OK && keys->n == 0)
        status = err_set(err, STATUS_INVALID,
                         "the key file %s has no key: a line is \"key\" or \"name key\"", path);
    if (status == STATUS_OK) {
        *out = keys;
        keys = NULL;
    }
out:
    explicit_bzero(bytes, len_bytes);
    free(bytes);
    api_keys_free(keys);
    return status;
}

void api_keys_free(struct api_keys *keys)
{
    if (keys != NULL)
        explicit_bzero(keys, sizeof *keys);
    free(keys);
}

/* Every key is compared and the place of the match is chosen by arithmetic: neither a branch nor an
 * early end depends on which it is. Only match or none is seen outside, as 200 or 401. */
const char *api_keys_find(const struct api_keys *keys, const char *key, size_t len_bytes)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];
    if (len_bytes == 0 || len_bytes > API_KEY_MAX_BYTES)
        return NULL;
    SHA256((const unsigned char *)key, len_bytes, digest);
    size_t place = 0;
    for (size_t i = 0; i < keys->n; i++) {
        unsigned difference =
            (unsigned)CRYPTO_memcmp(keys->keys[i].digest, digest, sizeof digest) & 0xffu;
        /* difference is 0 .. 255: all ones when it is 0, else 0. */
        size_t is_match = (size_t)0 - (size_t)((difference - 1u) >> 31);
        place |= (i + 1) & is_match;
    }
    return place > 0 ? keys->keys[place - 1].name : NULL;
}
