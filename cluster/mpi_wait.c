/* Sleeps on an eventfd, a bell and the MPI library's epoll descriptor, so that an idle rank costs
 * next to nothing. */
#include "cluster/mpi_wait.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 1024 };

static socklen_t bell_address(const struct mpi_bell *bell, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(out->sun_path, bell->name, bell->len_bytes);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bell->len_bytes);
}

/* Binding to an empty name lets the kernel pick a free abstract one (unix(7), autobind). */
static void open_bell(struct mpi_wait *w)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t len = sizeof address;
    w->bell_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (w->bell_fd < 0)
        return;
    if (bind(w->bell_fd, (struct sockaddr *)&address, sizeof(sa_family_t)) == 0 &&
        getsockname(w->bell_fd, (struct sockaddr *)&address, &len) == 0) {
        size_t n = len - offsetof(struct sockaddr_un, sun_path);
        if (n > 1 && n <= sizeof w->bell.name) {
            memcpy(w->bell.name, address.sun_path, n);
            w->bell.len_bytes = (uint8_t)n;
            return;
        }
    }
    close(w->bell_fd);
    w->bell_fd = -1;
}

enum status mpi_wait_open(struct mpi_wait *w, struct err *err)
{
    *w = (struct mpi_wait){.wake_fd = -1, .bell_fd = -1, .epoll_fd = -1};
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake_fd < 0)
        return err_set(err, STATUS_IO, "eventfd: %s", strerror(errno));
    open_bell(w);
    return STATUS_OK;
}

void mpi_wait_close(struct mpi_wait *w)
{
    if (w->wake_fd >= 0)
        close(w->wake_fd);
    if (w->bell_fd >= 0)
        close(w->bell_fd);
    w->wake_fd = w->bell_fd = w->epoll_fd = -1;
}

static bool is_tcp_listener(int fd)
{
    int is_listening = 0, domain = 0;
    socklen_t len = sizeof is_listening;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &len) != 0 || !is_listening)
        return false;
    len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
           (domain == AF_INET || domain == AF_INET6);
}

/* fdinfo of an eventpoll has a line "tfd: <fd> ..." for each descriptor it watches. */
static bool watches_a_listener(int epoll_fd, const bool is_listener[MAX_FDS])
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epoll_fd);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        int fd = -1;
        found = sscanf(line, "tfd: %d", &fd) == 1 && fd >= 0 && fd < MAX_FDS && is_listener[fd];
    }
    fclose(file);
    return found;
}

void mpi_wait_find_epoll(struct mpi_wait *w)
{
    bool is_listener[MAX_FDS] = {false}, is_epoll[MAX_FDS] = {false};
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char target[64];
        long fd = strtol(entry->d_name, NULL, 10);
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
        if (n < 0 || fd < 0 || fd >= MAX_FDS)
            continue;
        target[n] = '\0';
        is_epoll[fd] = strcmp(target, "anon_inode:[eventpoll]") == 0;
        is_listener[fd] = strncmp(target, "socket:", 7) == 0 && is_tcp_listener((int)fd);
    }
    closedir(dir);
    for (int fd = 0; fd < MAX_FDS && w->epoll_fd < 0; fd++)
        if (is_epoll[fd] && watches_a_listener(fd, is_listener))
            w->epoll_fd = fd;
}

void mpi_wait_ring(const struct mpi_wait *w, const struct mpi_bell *bell)
{
    if (w->bell_fd < 0 || bell->len_bytes == 0)
        return;
    struct sockaddr_un address;
    socklen_t len = bell_address(bell, &address);
    /* A full queue means that it is ringing already; a rank that has gone needs no waking. */
    (void)!sendto(w->bell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address, len);
}

void mpi_wait_sleep(struct mpi_wait *w, uint64_t timeout_ns)
{
    /* poll skips negative descriptors, which is just what an absent bell or epoll needs. */
    struct pollfd fds[3] = {{.fd = w->wake_fd, .events = POLLIN},
                            {.fd = w->bell_fd, .events = POLLIN},
                            {.fd = w->epoll_fd, .events = POLLIN}};
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    if (ppoll(fds, 3, &timeout, NULL) <= 0)
        return;
    uint64_t count;
    if (fds[0].revents != 0)
        (void)!read(w->wake_fd, &count, sizeof count);
    char byte;
    while (fds[1].revents != 0 && recv(w->bell_fd, &byte, 1, MSG_DONTWAIT) >= 0)
        continue;
}

void mpi_wait_wake(struct mpi_wait *w)
{
    /* One write per sleep is enough; the flag also ends the tests that come before a sleep. */
    if (!atomic_exchange(&w->is_woken, true)) {
        uint64_t one = 1;
        (void)!write(w->wake_fd, &one, sizeof one);
    }
}

bool mpi_wait_take_wake(struct mpi_wait *w)
{
    return atomic_load(&w->is_woken) && atomic_exchange(&w->is_woken, false);
}
