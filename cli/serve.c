/* `carousel serve`: the life of a server's process, from the first check to its exit code. */
#include "cli/cli.h"
#include "cli/serve_options.h"
#include "cli/serve_signals.h"
#include "cli/serve_trace.h"
#include "cluster/host.h"
#include "cluster/launch.h"
#include "cluster/mpi_env.h"
#include "coordinator/endpoint_file.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The drain was cut short: by its deadline, or by a second signal. */
enum { SERVE_EXIT_CUT = 3 };
enum serve_state { STATE_NONE = 0, STATE_LOADING, STATE_READY, STATE_DRAINING, STATE_STOPPED };

#define STEP_NS UINT64_C(1000000000)
/* How often a lost engine, which no longer waits by itself, looks whether the answers are out. */
#define LOST_STEP_NS UINT64_C(20000000)
/* What is cancelled at the end leaves the workers' memory within that, or never. */
#define LET_GO_NS UINT64_C(5000000000)
/* Clients of a lost cluster are told why at once; this is for those that read slowly. */
#define LOST_GRACE_S 2.0

struct serve {
    struct serve_options options;
    uint64_t started_ns;
    char model_name[256];
    struct api_keys *keys;
    struct http_server *server;
    struct serve_signals *signals;
    pthread_t http_thread;
    bool has_http_thread;
    _Atomic(bool) is_http_over;
    struct err http_err; /* of run; once is_http_over */
    _Atomic(int) stop;   /* enum serve_stop */
    _Atomic(bool) is_drain_sent;
    _Atomic(struct service *) service; /* for waking; set while there is one */
    struct session *session;
    struct serve_trace *trace;
    const char **hosts; /* [n_workers] */
    struct err lost;
    pthread_mutex_t state_lock; /* main and the signals' thread tell states */
    enum serve_state state;
};

/* ---- telling -------------------------------------------------------------------------------- */

static const char *scheme(const struct serve *s)
{
    return s->options.tls_cert != NULL ? "https" : "http";
}

/* The endpoint file and the log; a state never goes back. */
static void tell_state(struct serve *s, enum serve_state state, const char *why)
{
    static const char *const names[] = {"", "loading", "ready", "draining", "stopped"};
    struct err err = {0};
    pthread_mutex_lock(&s->state_lock);
    if (state > s->state) {
        s->state = state;
        struct log_field fields[] = {LOG_S("model", s->model_name), LOG_S("host", s->options.host),
                                     LOG_I("port", http_server_port(s->server)), LOG_S("why", why)};
        server_log(&s->options.log, LOG_LEVEL_INFO, names[state], fields, 4);
        const struct endpoint endpoint = {.host = s->options.host,
                                          .port = http_server_port(s->server),
                                          .scheme = scheme(s),
                                          .state = names[state],
                                          .model = s->model_name};
        if (s->options.endpoint_file != NULL &&
            endpoint_file_write(s->options.endpoint_file, &endpoint, &err) != STATUS_OK) {
            struct log_field message = LOG_S("message", err.message);
            server_log(&s->options.log, LOG_LEVEL_ERROR, "endpoint_file", &message, 1);
        }
    }
    pthread_mutex_unlock(&s->state_lock);
}

static void print_ready(const struct serve *s)
{
    const char *host = s->options.host;
    bool is_ipv6 = strchr(host, ':') != NULL && host[0] != '[';
    int n_workers = s->session->n_workers;
    printf("carousel: ready on %s://%s%s%s:%u (model %s, %d worker%s, started in %.1f s)\n",
           scheme(s), is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "",
           (unsigned)http_server_port(s->server), s->model_name, n_workers,
           n_workers == 1 ? "" : "s", (double)(host_now_ns() - s->started_ns) / 1e9);
    if (fflush(stdout) == 0)
        return;
    /* Nobody reads it: no reason to stop, nor to fail at the end. */
    struct log_field message = LOG_S("message", strerror(errno));
    server_log(&s->options.log, LOG_LEVEL_WARN, "ready_line_lost", &message, 1);
    clearerr(stdout);
}

/* ---- the other threads ---------------------------------------------------------------------- */

static void wake_engine(struct serve *s)
{
    struct service *service = atomic_load(&s->service);
    if (service != NULL)
        service_wake(service);
}

static void *http_main(void *arg)
{
    struct serve *s = arg;
    host_prefer_short_turns();
    http_server_run(s->server, &s->http_err);
    atomic_store(&s->is_http_over, true);
    wake_engine(s);
    return NULL;
}

static void drain(struct serve *s, double grace_s)
{
    if (!atomic_exchange(&s->is_drain_sent, true))
        http_server_drain(s->server, grace_s);
}

/* From the signals' thread. */
static void on_stop(void *user, enum serve_stop stop, int number)
{
    struct serve *s = user;
    atomic_store(&s->stop, (int)stop);
    if (stop == SERVE_STOP_DRAIN) /* before it is told: who reads it shall get no answer any more */
        drain(s, s->options.drain_timeout_s);
    tell_state(s, STATE_DRAINING, strsignal(number));
    if (stop != SERVE_STOP_DRAIN) {
        struct log_field why = LOG_S("why", strsignal(number));
        server_log(&s->options.log, LOG_LEVEL_WARN, "abort", &why, 1);
        http_server_abort(s->server);
    }
    wake_engine(s);
}

/* From the signals' thread. */
static void on_trace(void *user)
{
    struct serve *s = user;
    serve_trace_want(s->trace);
    wake_engine(s);
}

/* ---- the start ------------------------------------------------------------------------------ */

/* The name of the directory, when no other was given. */
static void name_model(struct serve *s)
{
    char dir[PATH_MAX], real[PATH_MAX];
    const char *model = s->options.session.model;
    if (s->options.n_names > 0) {
        snprintf(s->model_name, sizeof s->model_name, "%s", s->options.name_list[0]);
        return;
    }
    if (model == NULL && session_find_demo(dir, sizeof dir, NULL) == STATUS_OK)
        model = dir;
    if (model == NULL || realpath(model, real) == NULL)
        return; /* opening the model will tell */
    const char *slash = strrchr(real, '/');
    snprintf(s->model_name, sizeof s->model_name, "%.255s", slash != NULL ? slash + 1 : real);
}

/* What can be known to fail before a model is loaded: keys, certificate, address. */
static enum status prepare(struct serve *s, struct err *err)
{
    enum status status = STATUS_OK;
    if (s->options.key_file != NULL)
        status = api_keys_load(s->options.key_file, &s->keys, err);
    if (status == STATUS_OK)
        status = session_check_trace(&s->options.session, err);
    if (status != STATUS_OK)
        return status;
    struct http_server_config config;
    serve_options_http_config(&s->options, s->keys, &config);
    return http_server_create(&config, &s->server, err);
}

static enum status start_threads(struct serve *s, struct err *err)
{
    mpi_env_set_defaults(); /* it changes the environment, so before there are threads */
    enum status status =
        serve_trace_create(&s->options.log, s->options.session.trace, &s->trace, err);
    if (status == STATUS_OK)
        status = serve_signals_start(on_stop, on_trace, s, SERVE_EXIT_CUT, &s->signals, err);
    if (status != STATUS_OK)
        return status;
    if (pthread_create(&s->http_thread, NULL, http_main, s) != 0)
        return err_set(err, STATUS_NO_MEMORY, "cannot start the HTTP server's thread");
    s->has_http_thread = true;
    return STATUS_OK;
}

/* From 503 loading to serving. */
static enum status open_server(struct serve *s, struct err *err)
{
    struct session *session = s->session;
    const uint32_t n_workers = (uint32_t)session->n_workers;
    const struct service_config service_config = {.on_mail = http_server_on_mail,
                                                  .user = s->server};
    struct http_server_engine engine = {
        .checkpoint = session->checkpoint,
        .tokenizer = session->tokenizer,
        .model_name = s->model_name,
        .model_dir = session->model_dir,
        .aliases = s->options.n_names > 1 ? &s->options.name_list[1] : NULL,
        .n_aliases = s->options.n_names > 1 ? s->options.n_names - 1 : 0,
        .metrics = {.n_workers = n_workers,
                    .n_loops = (uint32_t)session->checkpoint->config.n_loops,
                    .model = s->model_name,
                    .version = CAROUSEL_VERSION},
        .ring_size = coordinator_ring_size(session->coordinator),
    };
    enum status status = serve_options_intake_config(&s->options, session, &engine.intake, err);
    if (status != STATUS_OK)
        return status;
    s->hosts = calloc(n_workers, sizeof *s->hosts);
    if (s->hosts == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the names of %u hosts", n_workers);
    for (uint32_t w = 0; w < n_workers; w++)
        s->hosts[w] = coordinator_worker_hello(session->coordinator, w)->host;
    engine.metrics.hosts = s->hosts;
    status = service_create(session->coordinator, &service_config, &engine.service, err);
    if (status != STATUS_OK)
        return status;
    atomic_store(&s->service, engine.service);
    http_server_open(s->server, &engine);
    if (atomic_load(&s->stop) == SERVE_STOP_NONE) {
        tell_state(s, STATE_READY, NULL);
        print_ready(s);
    }
    return STATUS_OK;
}

/* ---- the engine ----------------------------------------------------------------------------- */

static void lose(struct serve *s, const struct err *err)
{
    s->lost = *err;
    tell_state(s, STATE_STOPPED, s->lost.message);
    drain(s, LOST_GRACE_S);
}

/* Until every answer is out, or nobody will ask any more. */
static void run_engine(struct serve *s)
{
    struct service *service = atomic_load(&s->service);
    host_prefer_short_turns(); /* not before the workers' threads have been made of this one */
    while (!atomic_load(&s->is_http_over)) {
        struct err err = {0};
        enum status status = service_step(service, STEP_NS, &err);
        serve_trace_step(s->trace, s->session->coordinator);
        if (atomic_load(&s->stop) != SERVE_STOP_NONE)
            coordinator_note_draining(s->session->coordinator);
        if (status != STATUS_OK && s->lost.code == STATUS_OK)
            lose(s, &err);
        if (status != STATUS_OK) {
            const struct timespec pause = {.tv_nsec = (long)LOST_STEP_NS};
            nanosleep(&pause, NULL);
        }
    }
    const uint64_t deadline_ns = host_now_ns() + LET_GO_NS;
    while (s->lost.code == STATUS_OK && !service_is_idle(service) && host_now_ns() < deadline_ns)
        if (service_step(service, LET_GO_NS / 100, &s->lost) != STATUS_OK)
            break;
}

/* ---- the end -------------------------------------------------------------------------------- */

static int exit_code_of(const struct serve *s, enum status status, const struct err *err)
{
    if (status != STATUS_OK)
        return cli_fail("serve", err);
    if (s->lost.code != STATUS_OK)
        return cli_fail("serve", &s->lost);
    if (s->http_err.code != STATUS_OK)
        return cli_fail("serve", &s->http_err);
    bool is_cut = atomic_load(&s->stop) == SERVE_STOP_ABORT || http_server_was_cut_short(s->server);
    return is_cut ? SERVE_EXIT_CUT : CLI_OK;
}

static void join_http(struct serve *s)
{
    if (!s->has_http_thread)
        return;
    http_server_abort(s->server); /* after an orderly end without effect */
    pthread_join(s->http_thread, NULL);
    s->has_http_thread = false;
}

static int run_front(struct serve *s, char **program_argv)
{
    struct err err = {0};
    int exit_code = CLI_OK;
    serve_signals_block(); /* before anybody can know of us */
    enum status status = prepare(s, &err);
    if (status == STATUS_OK) {
        tell_state(s, STATE_LOADING, NULL);
        status = start_threads(s, &err);
    }
    /* In a job the workers wait for rank 0, whatever has become of it. */
    struct err refusal = err;
    if (status != STATUS_OK)
        s->options.session.refusal = &refusal;
    if (status == STATUS_OK || launch_is_rank())
        status = session_open(&s->options.session, program_argv, &s->session, &exit_code, &err);
    if (status == STATUS_OK)
        status = open_server(s, &err);
    if (status == STATUS_OK)
        run_engine(s);
    join_http(s);
    if (status == STATUS_OK) {
        enum status saved = serve_trace_finish(s->trace, s->session->coordinator, &err);
        status = s->lost.code == STATUS_OK ? saved : STATUS_OK; /* the loss is what is told */
    }
    if (s->server != NULL) {
        tell_state(s, STATE_STOPPED, status != STATUS_OK ? err.message : NULL);
        exit_code = exit_code_of(s, status, &err);
    } else {
        exit_code = cli_fail("serve", &err);
    }
    serve_signals_stop(s->signals);
    serve_trace_destroy(s->trace);
    http_server_destroy(s->server); /* its intake uses the session's model */
    session_close(s->session);
    service_destroy(atomic_load(&s->service)); /* the coordinator's last words went to it */
    free(s->hosts);
    return exit_code;
}

/* Not yet the server's process, but the place where a mistake is told without mpirun around it. */
static int run_launcher(struct serve *s, char **program_argv)
{
    struct err err = {0};
    int exit_code = CLI_OK;
    enum status status = prepare(s, &err);
    http_server_destroy(s->server);
    s->server = NULL;
    if (status == STATUS_OK)
        status = session_open(&s->options.session, program_argv, &s->session, &exit_code, &err);
    return status != STATUS_OK ? cli_fail("serve", &err) : exit_code;
}

static int run_worker(struct serve *s, char **program_argv)
{
    struct err err = {0};
    int exit_code = CLI_OK;
    serve_signals_ignore();
    if (session_open(&s->options.session, program_argv, &s->session, &exit_code, &err) != STATUS_OK)
        return cli_fail("serve", &err);
    return exit_code;
}

int cli_serve(int argc, char **argv, char **program_argv)
{
    struct serve s = {.started_ns = host_now_ns(), .state_lock = PTHREAD_MUTEX_INITIALIZER};
    struct err err = {0};
    bool is_over = false;
    int exit_code = CLI_OK;
    if (serve_options_read(&s.options, argc, argv, &is_over, &err) != STATUS_OK) {
        exit_code = cli_fail_usage("serve", &err);
    } else if (!is_over) {
        name_model(&s);
        switch (session_find_place(&s.options.session)) {
        case SESSION_WORKER:
            exit_code = run_worker(&s, program_argv);
            break;
        case SESSION_LAUNCHER:
            exit_code = run_launcher(&s, program_argv);
            break;
        default:
            exit_code = run_front(&s, program_argv);
        }
    }
    api_keys_free(s.keys);
    serve_options_free(&s.options);
    return exit_code;
}
