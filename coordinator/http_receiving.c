/* Bounds the bytes of requests that are not complete: what nobody has paid for with a whole body.
 *
 * While there are too many, a connection that has sent more than a head is not read from; the one
 * that began first goes on, so that somebody's request becomes complete or runs into the idle
 * timeout. Small requests pass in any case. */
#include "coordinator/http_state.h"

/* evhttp takes chunks out of the input buffer, which therefore does not stop growing at a
 * watermark: whoever sends that much after having been stopped is cut off. */
enum { MAX_LATE_BYTES = 4096 };

static bool is_receiving(const struct http_peer *peer)
{
    return peer->received_bytes > 0 && !peer->exchange;
}

static bool is_over(const struct http_server *server)
{
    return server->receiving_bytes / HTTP_MAX_BODIES >= server->config.max_body_bytes;
}

static struct http_peer *oldest(const struct http_server *server)
{
    struct http_peer *first = NULL;
    for (struct http_peer *p = server->peers; p; p = p->next)
        if (is_receiving(p) && (!first || p->reading_since_ns < first->reading_since_ns))
            first = p;
    return first;
}

static void set_paused(struct http_peer *peer, bool is_paused)
{
    peer->server->n_paused += is_paused ? 1 : UINT32_MAX; /* or one less */
    peer->is_paused = is_paused;
    peer->late_bytes = 0;
    bufferevent_setwatermark(peer->bev, EV_READ, 0, is_paused ? 1 : 0);
}

void http_receiving_add(struct http_peer *peer, size_t n_bytes)
{
    struct http_server *server = peer->server;
    peer->received_bytes += n_bytes;
    server->receiving_bytes += n_bytes;
    if (peer->is_paused)
        peer->late_bytes += n_bytes;
    else if (is_over(server) && peer->received_bytes > server->config.max_header_bytes &&
             peer != oldest(server))
        set_paused(peer, true);
}

/* Lets those go on who may: all, or the first. */
static void resume(struct http_server *server)
{
    struct http_peer *first = is_over(server) ? oldest(server) : NULL;
    for (struct http_peer *p = server->peers; p; p = p->next)
        if (p->is_paused && (!first || p == first))
            set_paused(p, false);
}

void http_receiving_end(struct http_peer *peer)
{
    struct http_server *server = peer->server;
    server->receiving_bytes -= peer->received_bytes;
    peer->received_bytes = 0;
    if (peer->is_paused)
        server->n_paused--;
    peer->is_paused = false; /* whoever ends it sets its own watermark, or closes */
    if (server->n_paused > 0)
        resume(server);
}

bool http_receiving_is_abuse(const struct http_peer *peer)
{
    return peer->is_paused && peer->late_bytes > MAX_LATE_BYTES;
}
