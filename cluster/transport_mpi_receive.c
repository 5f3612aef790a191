/* Takes messages in from MPI, whole and in the order each source has sent them. */
#include "cluster/host.h"
#include "cluster/transport_mpi_state.h"

#include <string.h>

enum status mpi_start_head_receive(struct mpi *m, struct err *err)
{
    if (mpi_link_is_head_receive_pending(m->link))
        return STATUS_OK;
    if (m->head_node == NULL) {
        enum status status = message_pool_acquire(m->pool, WHOLE_BYTES, &m->head_node, err);
        if (status != STATUS_OK)
            return status;
    }
    return mpi_link_receive_head(m->link, m->head_node->message.bytes, WHOLE_BYTES, err);
}

/* Hands on what is complete, in the order its source has sent it. */
static void queue_to_ready(struct mpi *m, int source)
{
    struct message_queue *queue = &m->peers[source].queue;
    while (queue->first != NULL && queue->first->is_complete)
        message_queue_push(&m->ready, message_queue_pop(queue));
}

static enum status check_announcement(const struct mpi *m, const struct mpi_link_head *head,
                                      const uint64_t said[3], struct err *err)
{
    const struct peer *peer = &m->peers[head->source];
    if (head->len_bytes != ANNOUNCE_BYTES || (said[0] <= WHOLE_BYTES && said[2] == 0) ||
        said[0] > TRANSPORT_MAX_MESSAGE_BYTES || said[1] != peer->n_bodies_received ||
        said[2] > TRANSPORT_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_CORRUPT,
                       "rank %d announces a body of %llu bytes as number %llu and %llu bytes of "
                       "rows in %zu bytes (limit %d, expected number %llu)",
                       head->source, (unsigned long long)said[0], (unsigned long long)said[1],
                       (unsigned long long)said[2], head->len_bytes, TRANSPORT_MAX_MESSAGE_BYTES,
                       (unsigned long long)peer->n_bodies_received);
    if (said[2] > 0 && m->rows_pool == NULL)
        return err_set(err, STATUS_CORRUPT,
                       "rank %d announces %llu bytes of rows apart, and this rank has no memory "
                       "for them",
                       head->source, (unsigned long long)said[2]);
    return STATUS_OK;
}

/* Starts the receives of an announced message's parts. */
static enum status receive_parts(struct mpi *m, int source, struct message_node *node,
                                 struct err *err)
{
    struct transport_message *message = &node->message;
    enum status status = STATUS_OK;
    if (message->rows_bytes > 0) {
        status = message_pool_acquire(m->rows_pool, message->rows_bytes, &node->rows, err);
        if (status != STATUS_OK)
            return status;
        message->rows = node->rows->message.bytes;
    }
    status = mpi_link_receive(m->link, MPI_LINK_BODY, source, message->bytes, message->len_bytes,
                              node, err);
    if (status != STATUS_OK)
        return status;
    node->n_pending++;
    if (message->rows_bytes == 0)
        return STATUS_OK;
    status = mpi_link_receive(m->link, MPI_LINK_ROWS, source, message->rows, message->rows_bytes,
                              node, err);
    node->n_pending += status == STATUS_OK;
    return status;
}

static enum status accept_announcement(struct mpi *m, const struct mpi_link_head *head,
                                       struct err *err)
{
    uint64_t said[3] = {0};
    struct peer *peer = &m->peers[head->source];
    if (head->len_bytes == ANNOUNCE_BYTES)
        memcpy(said, m->head_node->message.bytes, ANNOUNCE_BYTES);
    struct message_node *node = NULL;
    enum status status = check_announcement(m, head, said, err);
    if (status == STATUS_OK)
        status = message_pool_acquire(m->pool, (size_t)said[0], &node, err);
    if (status != STATUS_OK)
        return status;
    node->message.len_bytes = (size_t)said[0];
    node->message.rows_bytes = (size_t)said[2];
    node->message.source = head->source;
    status = receive_parts(m, head->source, node, err);
    if (status != STATUS_OK && node->n_pending == 0) {
        mpi_node_release(m, node);
        return status;
    }
    /* After a failure, too: a receive that is under way writes into it. */
    peer->n_bodies_received++;
    message_queue_push(&peer->queue, node);
    return status;
}

static void accept_whole(struct mpi *m, const struct mpi_link_head *head)
{
    struct message_node *node = m->head_node;
    m->head_node = NULL;
    node->message.len_bytes = head->len_bytes;
    node->message.source = head->source;
    node->is_complete = true;
    message_queue_push(&m->peers[head->source].queue, node);
    queue_to_ready(m, head->source);
}

void mpi_part_received(void *context, struct message_node *node, int peer)
{
    struct mpi *m = context;
    node->is_complete = --node->n_pending == 0;
    queue_to_ready(m, peer);
    m->last_step_ns = host_now_ns();
    mpi_ring(m, peer); /* its send can complete now */
}

enum status mpi_take_heads(struct mpi *m, struct err *err)
{
    struct mpi_link_head head = {.has_arrived = true};
    while (head.has_arrived && m->ready.first == NULL) {
        enum status status = mpi_start_head_receive(m, err);
        if (status == STATUS_OK)
            status = mpi_link_test_head(m->link, &head, err);
        if (status != STATUS_OK)
            return status;
        if (!head.has_arrived)
            break;
        m->last_step_ns = host_now_ns();
        if (head.kind == MPI_LINK_WHOLE)
            accept_whole(m, &head);
        else if ((status = accept_announcement(m, &head, err)) != STATUS_OK)
            return status;
    }
    return mpi_start_head_receive(m, err);
}
