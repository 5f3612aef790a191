/* The one status type of the tree, and the message that goes with a failure.
 *
 * What can fail returns enum status and takes `struct err *err` last. STATUS_OK is 0. The first
 * function that detects a problem writes the message, with the values it saw, where it saw them and
 * what the user can do; callers pass it on unchanged or add where they were (err_wrap). Libraries
 * neither print nor exit. `err` may be NULL everywhere: then only the code is returned. */
#ifndef PROTO_STATUS_H
#define PROTO_STATUS_H

#include <stddef.h>

enum status {
    STATUS_OK = 0,
    STATUS_INVALID,     /* an argument or a user's value is out of range */
    STATUS_NOT_FOUND,   /* a file, tensor, token or name does not exist */
    STATUS_CORRUPT,     /* bytes from a file or a peer break their format */
    STATUS_UNSUPPORTED, /* valid, but this build or this engine does not do it */
    STATUS_NO_MEMORY,   /* the machine or a fixed pool has no room */
    STATUS_IO,          /* the operating system refused a read, write or map */
    STATUS_MISMATCH,    /* two ranks disagree on something they must share */
    STATUS_FULL,        /* a bounded queue has no room now: try again later */
    STATUS_TIMEOUT,     /* a deadline passed */
    STATUS_CANCELLED,   /* the user or a signal stopped it */
    STATUS_INTERNAL,    /* our own mistake; please report */
    STATUS_COUNT
};

enum { ERR_MESSAGE_BYTES = 512 };

struct err {
    enum status code;
    char message[ERR_MESSAGE_BYTES]; /* one line, always terminated; empty when code is STATUS_OK */
};

/* Writes code and the formatted message (cut at ERR_MESSAGE_BYTES) into err and returns code, so
 * that `return err_set(err, STATUS_INVALID, "...")` reads as one thought. err may be NULL. */
enum status err_set(struct err *err, enum status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<context>: " in front of the message err already holds; the code stays. Returns err->code,
 * or STATUS_INTERNAL when err is NULL. */
enum status err_wrap(struct err *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The code as a lower-case word ("not_found"); "unknown" for a value outside the enum. */
const char *status_name(enum status code);

#endif
