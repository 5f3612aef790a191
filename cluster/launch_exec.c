/* Runs mpirun with its output copied, so that what happens to output and ranks is told. */
#include "cluster/launch_exec.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COPY_BYTES = 65536, EXIT_SIGNAL_BASE = 128, REPEAT_MS = 1000 };

struct launched {
    pid_t child;
    int output, signals; /* pipe of its standard output; signalfd */
    bool is_server;
    int asked; /* is_server: what the child was asked last: 0, SIGUSR1, SIGURG, SIGTERM */
};

/* In the child. What goes wrong is told through the pipe that a successful exec closes. */
static void be_program(char **args, bool is_server, int output, int failure)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (is_server) {
        setpgid(0, 0);
        /* One that comes before mpirun has its handlers must not end it. */
        signal(SIGUSR1, SIG_IGN);
        signal(SIGUSR2, SIG_IGN);
        int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (nothing >= 0)
            dup2(nothing, STDIN_FILENO);
    }
    if (dup2(output, STDOUT_FILENO) >= 0)
        execvp(args[0], args);
    int why = errno;
    ssize_t ignored = write(failure, &why, sizeof why);
    (void)ignored;
    _exit(EXIT_SIGNAL_BASE - 1);
}

static void take_signals(sigset_t *set, bool is_server)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGQUIT);
    if (is_server) {
        sigaddset(set, SIGUSR1);
        sigaddset(set, SIGUSR2);
        sigaddset(set, SIGURG);
    }
    sigprocmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* 0, or why standard output takes no more; EPIPE: its reader has left. */
static int write_all(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(STDOUT_FILENO, bytes, n);
        if (done < 0 && errno == EAGAIN) {
            struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&out, 1, -1);
        } else if (done < 0 && errno != EINTR) {
            return errno;
        } else if (done > 0) {
            bytes += done;
            n -= (size_t)done;
        }
    }
    return 0;
}

/* The next step towards the end of a server, or its trace. */
static void ask_server(struct launched *l, int number)
{
    if (number == SIGUSR2) {
        kill(l->child, SIGUSR2);
        return;
    }
    if (number == SIGQUIT || l->asked == SIGURG || l->asked == SIGTERM)
        l->asked = SIGTERM;
    else if (number == SIGURG || (l->asked == SIGUSR1 && number != SIGUSR1))
        l->asked = SIGURG;
    else
        l->asked = SIGUSR1;
    kill(l->child, l->asked);
}

static void pass_on(struct launched *l)
{
    struct signalfd_siginfo info;
    if (read(l->signals, &info, sizeof info) != sizeof info)
        return;
    if (l->is_server)
        ask_server(l, (int)info.ssi_signo);
    else if (info.ssi_code != SI_KERNEL)
        kill(l->child, (int)info.ssi_signo);
}

/* Copies until the child's last writer has closed. 0, or why output was lost, as write_all. */
static int copy_output(struct launched *l)
{
    char bytes[COPY_BYTES];
    int lost = 0;
    for (;;) {
        struct pollfd fds[] = {
            {.fd = l->output, .events = POLLIN},
            {.fd = l->signals, .events = POLLIN},
            {.fd = lost == 0 ? STDOUT_FILENO : -1}, /* no events asked: tells of a reader's end */
        };
        int n_ready = poll(fds, 3, l->asked != 0 ? REPEAT_MS : -1);
        if (n_ready == 0 && l->asked != SIGTERM)
            kill(l->child, l->asked);
        if (n_ready <= 0)
            continue;
        if (fds[1].revents != 0)
            pass_on(l);
        ssize_t n = -1;
        if (fds[0].revents != 0 && (n = read(l->output, bytes, sizeof bytes)) == 0)
            return lost;
        if (lost != 0)
            continue;
        bool is_closed = (fds[2].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
        lost = is_closed ? EPIPE : n > 0 ? write_all(bytes, (size_t)n) : 0;
        if (lost != 0 && !l->is_server)
            kill(l->child, SIGTERM);
    }
}

/* mpirun --quiet says nothing of a rank that a signal has ended; its exit code does. */
static void end_as(int status)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_SIGNAL_BASE + WTERMSIG(status);
    int number = code - EXIT_SIGNAL_BASE;
    if (number > 0 && number < NSIG)
        dprintf(STDERR_FILENO,
                "carousel: a process of this job was ended by signal %d (%s)%s, and the job with "
                "it\n",
                number, strsignal(number),
                number == SIGKILL ? ", as a host does that runs out of memory" : "");
    _exit(code);
}

static void end_without_output(int why)
{
    if (why != EPIPE) {
        dprintf(STDERR_FILENO, "carousel: cannot write standard output: %s\n", strerror(why));
        _exit(1);
    }
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
    _exit(EXIT_SIGNAL_BASE + SIGPIPE);
}

int launch_exec(char **args, bool is_server)
{
    int output[2], failure[2] = {-1, -1};
    if (pipe2(output, O_CLOEXEC) != 0)
        return errno;
    pid_t child = pipe2(failure, O_CLOEXEC) == 0 ? fork() : -1;
    if (child == 0)
        be_program(args, is_server, output[1], failure[1]);
    int why = errno, status = 0;
    close(output[1]);
    if (failure[1] >= 0)
        close(failure[1]);
    if (child > 0) {
        ssize_t n = read(failure[0], &why, sizeof why);
        close(failure[0]);
        if (n == 0) {
            sigset_t set;
            take_signals(&set, is_server);
            struct launched l = {.child = child,
                                 .output = output[0],
                                 .signals = signalfd(-1, &set, SFD_CLOEXEC),
                                 .is_server = is_server};
            int lost = copy_output(&l);
            while (waitpid(child, &status, 0) < 0 && errno == EINTR)
                continue;
            if (lost != 0 && !is_server)
                end_without_output(lost);
            end_as(status);
        }
        waitpid(child, &status, 0);
    } else if (failure[0] >= 0) {
        close(failure[0]);
    }
    close(output[0]);
    return why;
}
