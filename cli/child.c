/* Runs another program to its end, or to a deadline, and keeps what it wrote. */
#include "cli/child.h"

#include "cluster/host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIGNAL_BASE = 128, NO_PROGRAM = 127 };

struct pipes {
    int out[2], errors[2], failure[2];
};

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_all(struct pipes *p)
{
    int *const fds[] = {&p->out[0],    &p->out[1],     &p->errors[0],
                        &p->errors[1], &p->failure[0], &p->failure[1]};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        close_one(fds[i]);
}

static bool open_all(struct pipes *p)
{
    *p = (struct pipes){{-1, -1}, {-1, -1}, {-1, -1}};
    return pipe2(p->out, O_CLOEXEC) == 0 && pipe2(p->errors, O_CLOEXEC) == 0 &&
           pipe2(p->failure, O_CLOEXEC) == 0;
}

static void drop_variables(const char *prefix)
{
    extern char **environ;
    size_t n_prefix = strlen(prefix);
    for (char **entry = environ; *entry != NULL;) {
        char name[256];
        size_t n = strcspn(*entry, "=");
        if (strncmp(*entry, prefix, n_prefix) == 0 && n < sizeof name) {
            memcpy(name, *entry, n);
            name[n] = '\0';
            unsetenv(name); /* moves the entries behind it up: look at this place again */
        } else {
            entry++;
        }
    }
}

/* In the child. A failure is told through the pipe that a successful exec closes. */
static void be_program(const char *const *args, const char *without, const struct pipes *p)
{
    int nothing = open("/dev/null", O_RDONLY);
    setpgid(0, 0); /* the deadline ends what it has started as well */
    if (without != NULL)
        drop_variables(without);
    if (nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0 && dup2(p->out[1], STDOUT_FILENO) >= 0 &&
        dup2(p->errors[1], STDERR_FILENO) >= 0)
        execvp(args[0], (char *const *)args);
    int why = errno;
    ssize_t ignored = write(p->failure[1], &why, sizeof why);
    (void)ignored;
    _exit(NO_PROGRAM);
}

/* Appends what is there; false at the end. What does not fit is read and dropped. */
static bool read_some(int fd, char *text, size_t cap_bytes, size_t *n_bytes)
{
    char dropped[4096];
    size_t room = cap_bytes - 1 - *n_bytes;
    ssize_t n = read(fd, room > 0 ? text + *n_bytes : dropped, room > 0 ? room : sizeof dropped);
    if (n < 0)
        return errno == EINTR;
    if (room > 0)
        *n_bytes += (size_t)n;
    text[*n_bytes] = '\0';
    return n > 0;
}

/* True when both pipes have ended before the deadline. */
static bool read_both(struct pipes *p, uint64_t deadline_ns, struct child *child)
{
    size_t n_out = 0, n_errors = 0;
    while (p->out[0] >= 0 || p->errors[0] >= 0) {
        uint64_t now_ns = host_now_ns();
        if (now_ns >= deadline_ns)
            return false;
        struct pollfd fds[] = {{.fd = p->out[0], .events = POLLIN},
                               {.fd = p->errors[0], .events = POLLIN}};
        if (poll(fds, 2, (int)((deadline_ns - now_ns) / 1000000) + 1) < 0 && errno != EINTR)
            return false;
        if (fds[0].revents != 0 && !read_some(p->out[0], child->out, sizeof child->out, &n_out))
            close_one(&p->out[0]);
        if (fds[1].revents != 0 &&
            !read_some(p->errors[0], child->errors, sizeof child->errors, &n_errors))
            close_one(&p->errors[0]);
    }
    return true;
}

/* A program that has closed its outputs may still be busy; true when it has ended by the deadline.
 */
static bool wait_until(pid_t pid, uint64_t deadline_ns, int *status)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (;;) {
        pid_t found = waitpid(pid, status, WNOHANG);
        if (found == pid || (found < 0 && errno != EINTR))
            return true;
        if (host_now_ns() >= deadline_ns)
            return false;
        nanosleep(&pause, NULL);
    }
}

enum status child_run(const char *const *args, const char *without, double timeout_s,
                      struct child *out, struct err *err)
{
    struct pipes p;
    pid_t pid = open_all(&p) ? fork() : -1;
    if (pid < 0) {
        int why = errno;
        close_all(&p);
        return err_set(err, STATUS_IO, "cannot start %s: %s", args[0], strerror(why));
    }
    if (pid == 0)
        be_program(args, without, &p);
    close_one(&p.out[1]);
    close_one(&p.errors[1]);
    close_one(&p.failure[1]);
    out->out[0] = out->errors[0] = '\0';
    int why = 0, status = 0;
    ssize_t n_failure = read(p.failure[0], &why, sizeof why);
    uint64_t deadline_ns = host_now_ns() + (uint64_t)(timeout_s * 1e9);
    bool is_whole = read_both(&p, deadline_ns, out) && wait_until(pid, deadline_ns, &status);
    if (!is_whole) {
        kill(-pid, SIGKILL);
        kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            continue;
    }
    close_all(&p);
    if (n_failure == sizeof why)
        return err_set(err, why == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot start %s: %s",
                       args[0], strerror(why));
    if (!is_whole)
        return err_set(err, STATUS_TIMEOUT, "%s did not answer within %g s", args[0], timeout_s);
    out->code = WIFEXITED(status) ? WEXITSTATUS(status) : SIGNAL_BASE + WTERMSIG(status);
    return STATUS_OK;
}
