/* Puts a file in place whole, or leaves what was there and says why. */
#include "model/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* One write call takes at most 2 GiB on Linux; smaller ones let a full disk show early. */
enum { MAX_WRITE_BYTES = 64 << 20 };

static enum status fail(struct atomic_file *f, const char *what, int error, struct err *err)
{
    const char *remedy = error == ENOSPC || error == EDQUOT
                             ? "; free some space or choose another directory"
                         : error == EFBIG ? "; the limit on file sizes (ulimit -f) is too low"
                                          : "";
    enum status status = err_set(
        err, STATUS_IO, "cannot write %s: %s after %llu of %llu bytes: %s%s", f->path, what,
        (unsigned long long)f->n_written, (unsigned long long)f->n_wanted, strerror(error), remedy);
    atomic_file_discard(f);
    return status;
}

enum status atomic_file_create(struct atomic_file *f, const char *path, uint64_t n_wanted,
                               struct err *err)
{
    f->fd = -1;
    f->n_written = 0;
    f->n_wanted = n_wanted;
    int n = snprintf(f->temporary, sizeof f->temporary, "%s%s", path, ATOMIC_FILE_SUFFIX);
    if (n < 0 || (size_t)n >= sizeof f->temporary)
        return err_set(err, STATUS_INVALID, "the path %.100s... is too long to write to", path);
    memcpy(f->path, f->temporary, (size_t)n);
    f->path[(size_t)n - strlen(ATOMIC_FILE_SUFFIX)] = '\0';
    f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0)
        return err_set(err, STATUS_IO, "cannot create %s (%llu bytes wanted): %s", f->temporary,
                       (unsigned long long)n_wanted, strerror(errno));
    return STATUS_OK;
}

enum status atomic_file_append(struct atomic_file *f, const void *bytes, size_t n, struct err *err)
{
    const char *at = bytes;
    while (n > 0) {
        ssize_t done = write(f->fd, at, n < MAX_WRITE_BYTES ? n : MAX_WRITE_BYTES);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail(f, "write failed", done < 0 ? errno : EIO, err);
        at += done;
        n -= (size_t)done;
        f->n_written += (uint64_t)done;
    }
    return STATUS_OK;
}

/* The rename must reach the disk too. Some network file systems refuse to sync a directory; there
 * the rename is as durable as they make it. */
static int sync_directory(const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        snprintf(dir, sizeof dir, ".");
    else
        snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES ? 0 : errno; /* a directory we may write to but not read */
    int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return error == EINVAL || error == ENOTSUP ? 0 : error;
}

enum status atomic_file_commit(struct atomic_file *f, struct err *err)
{
    if (fsync(f->fd) != 0)
        return fail(f, "sync failed", errno, err);
    int fd = f->fd;
    f->fd = -1;
    if (close(fd) != 0) {
        int error = errno;
        unlink(f->temporary);
        return fail(f, "close failed", error, err);
    }
    if (rename(f->temporary, f->path) != 0) {
        int error = errno;
        unlink(f->temporary);
        return fail(f, "rename failed", error, err);
    }
    int error = sync_directory(f->path);
    return error == 0 ? STATUS_OK : fail(f, "sync of its directory failed", error, err);
}

void atomic_file_discard(struct atomic_file *f)
{
    if (f->fd < 0)
        return;
    close(f->fd);
    f->fd = -1;
    unlink(f->temporary);
}

enum status atomic_file_write(const char *path, const void *bytes, size_t n, struct err *err)
{
    struct atomic_file f;
    enum status status = atomic_file_create(&f, path, n, err);
    if (status == STATUS_OK)
        status = atomic_file_append(&f, bytes, n, err);
    if (status == STATUS_OK)
        status = atomic_file_commit(&f, err);
    return status;
}
