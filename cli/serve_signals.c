/* Turns signals into steps towards the end, one after another. */
#include "cli/serve_signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct serve_signals {
    pthread_t thread;
    int signals, over; /* signalfd; eventfd that ends the thread */
    enum serve_stop stop;
    int at_once_code;
    void (*on_stop)(void *user, enum serve_stop stop, int number);
    void (*on_trace)(void *user);
    void *user;
};

static const int watched[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGURG};
enum { N_WATCHED = sizeof watched / sizeof watched[0] };

void serve_signals_ignore(void)
{
    for (int i = 0; i < N_WATCHED; i++)
        signal(watched[i], SIG_IGN);
}

static void fill(sigset_t *set)
{
    sigemptyset(set);
    for (int i = 0; i < N_WATCHED; i++)
        sigaddset(set, watched[i]);
}

void serve_signals_block(void)
{
    sigset_t set;
    fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN); /* clients leave whenever they like */
}

static void take(struct serve_signals *s, int number)
{
    enum serve_stop next = SERVE_STOP_DRAIN;
    if (number == SIGUSR2) {
        s->on_trace(s->user);
        return;
    }
    if (number == SIGURG || (s->stop != SERVE_STOP_NONE && number != SIGUSR1))
        next = SERVE_STOP_ABORT;
    if (next == SERVE_STOP_ABORT && s->stop == SERVE_STOP_ABORT && number != SIGURG)
        _exit(s->at_once_code);
    if (next <= s->stop)
        return;
    s->stop = next;
    s->on_stop(s->user, next, number);
}

static void *signals_main(void *arg)
{
    struct serve_signals *s = arg;
    struct pollfd fds[] = {{.fd = s->signals, .events = POLLIN}, {.fd = s->over, .events = POLLIN}};
    while (fds[1].revents == 0) {
        struct signalfd_siginfo info;
        if (poll(fds, 2, -1) > 0 && (fds[0].revents & POLLIN) != 0 &&
            read(s->signals, &info, sizeof info) == sizeof info)
            take(s, (int)info.ssi_signo);
    }
    return NULL;
}

enum status serve_signals_start(void (*on_stop)(void *user, enum serve_stop stop, int number),
                                void (*on_trace)(void *user), void *user, int at_once_code,
                                struct serve_signals **out, struct err *err)
{
    struct serve_signals *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the signals");
    sigset_t set;
    fill(&set);
    s->on_stop = on_stop;
    s->on_trace = on_trace;
    s->user = user;
    s->at_once_code = at_once_code;
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    s->over = eventfd(0, EFD_CLOEXEC);
    if (s->signals < 0 || s->over < 0 || pthread_create(&s->thread, NULL, signals_main, s) != 0) {
        if (s->signals >= 0)
            close(s->signals);
        if (s->over >= 0)
            close(s->over);
        free(s);
        return err_set(err, STATUS_NO_MEMORY, "cannot start the thread that waits for signals");
    }
    *out = s;
    return STATUS_OK;
}

void serve_signals_stop(struct serve_signals *s)
{
    if (s == NULL)
        return;
    const uint64_t one = 1;
    if (write(s->over, &one, sizeof one) == sizeof one)
        pthread_join(s->thread, NULL);
    close(s->signals);
    close(s->over);
    free(s);
}
