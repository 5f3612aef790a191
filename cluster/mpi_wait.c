/* Sleeps on an eventfd, a bell and the MPI library's epoll descriptor, so that an idle rank costs
 * next to nothing. */
#include "cluster/mpi_wait.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
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

/* Without a sign everybody rings every time, which is slower and as right. */
static void open_sign(struct mpi_wait *w)
{
    uint64_t nonce = 0;
    int fd = memfd_create("carousel-bell", MFD_CLOEXEC);
    if (fd < 0)
        return;
    if (getrandom(&nonce, sizeof nonce, GRND_NONBLOCK) != sizeof nonce || nonce == 0 ||
        ftruncate(fd, sizeof *w->sign) != 0)
        goto failed;
    void *page = mmap(NULL, sizeof *w->sign, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        goto failed;
    w->sign = page;
    w->sign->nonce = nonce;
    w->bell.nonce = nonce;
    w->bell.pid = (int32_t)getpid();
    w->bell.sign_fd = fd;
    return;
failed:
    close(fd);
}

enum status mpi_wait_open(struct mpi_wait *w, struct err *err)
{
    *w = (struct mpi_wait){.wake_fd = -1, .bell_fd = -1, .epoll_fd = -1};
    w->bell.sign_fd = -1;
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake_fd < 0)
        return err_set(err, STATUS_IO, "eventfd: %s", strerror(errno));
    open_bell(w);
    if (w->bell.len_bytes > 0)
        open_sign(w);
    return STATUS_OK;
}

void mpi_wait_close(struct mpi_wait *w)
{
    if (w->wake_fd >= 0)
        close(w->wake_fd);
    if (w->bell_fd >= 0)
        close(w->bell_fd);
    if (w->sign != NULL)
        munmap(w->sign, sizeof *w->sign);
    if (w->bell.sign_fd >= 0)
        close(w->bell.sign_fd);
    w->sign = NULL;
    w->bell.sign_fd = -1;
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

void mpi_wait_attach(const struct mpi_bell *bell, struct mpi_peer_bell *out)
{
    *out = (struct mpi_peer_bell){.bell = *bell};
    if (bell->len_bytes > sizeof bell->name)
        out->bell.len_bytes = 0;
    if (out->bell.len_bytes == 0 || bell->sign_fd < 0)
        return;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)bell->pid, (int)bell->sign_fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (fd < 0)
        return;
    /* In another PID namespace the path may lead to somebody else's file. */
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == sizeof *out->sign) {
        void *page = mmap(NULL, sizeof *out->sign, PROT_READ, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED && ((const struct mpi_sign *)page)->nonce == bell->nonce)
            out->sign = page;
        else if (page != MAP_FAILED)
            munmap(page, sizeof *out->sign);
    }
    close(fd);
}

void mpi_wait_detach(struct mpi_peer_bell *peer)
{
    if (peer->sign != NULL)
        munmap((void *)peer->sign, sizeof *peer->sign);
    *peer = (struct mpi_peer_bell){.sign = NULL};
}

void mpi_wait_ring(const struct mpi_wait *w, const struct mpi_peer_bell *peer)
{
    if (w->bell_fd < 0 || peer->bell.len_bytes == 0)
        return;
    /* The message before the sign, as the other side does the sign before its last look for
     * messages: one of the two sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (peer->sign != NULL && atomic_load(&peer->sign->may_sleep) == 0)
        return;
    struct sockaddr_un address;
    socklen_t len = bell_address(&peer->bell, &address);
    /* A full queue means that it is ringing already; a rank that has gone needs no waking. */
    (void)!sendto(w->bell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address, len);
}

void mpi_wait_set_may_sleep(struct mpi_wait *w, bool may_sleep)
{
    if (w->sign == NULL)
        return;
    atomic_store(&w->sign->may_sleep, may_sleep);
    atomic_thread_fence(memory_order_seq_cst);
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
