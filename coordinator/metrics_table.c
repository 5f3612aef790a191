/* Lists every metric with all that a page and a reader must know of it. */
#include "coordinator/metrics_table.h"

/* A step of a tiny model takes 50 us, a queue in front of a large one minutes: 1, 2.5, 5 in each
 * power of ten, whole minutes above. */
static const struct metric_buckets durations = {
    22, {50e-6,  100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3,
         250e-3, 500e-3, 1,      2.5,    5,    10,     30,   60,    120,   300,   600}};
/* Parts of a token's time: a hop within a host takes 2 us. Fewer of them, since there are as many
 * histograms as loops times workers. */
static const struct metric_buckets parts = {16,
                                            {2e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6,
                                             500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3,
                                             500e-3, 2.5}};
/* From a token to the socket: fine where it should lie, below 2 ms. */
static const struct metric_buckets deliveries = {18,
                                                 {25e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3,
                                                  1.5e-3, 2e-3, 3e-3, 5e-3, 10e-3, 20e-3, 50e-3,
                                                  100e-3, 500e-3, 1, 5, 10}};
static const struct metric_buckets lengths = {18,
                                              {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000,
                                               10000, 20000, 50000, 100000, 200000, 500000}};

#define COUNTER   METRIC_COUNTER
#define GAUGE     METRIC_GAUGE
#define HISTOGRAM METRIC_HISTOGRAM

/* clang-format off */
const struct metric metrics_table[METRIC_COUNT] = {
    [METRIC_BUILD_INFO] = {
        "build_info", GAUGE, METRIC_FIXED, {"version"}, NULL,
        "Version of the server; always 1."},
    [METRIC_MODEL_INFO] = {
        "model_info", GAUGE, METRIC_FIXED, {"model_name", "loops"}, NULL,
        "The served model and its loops; always 1."},
    [METRIC_SERVER_STATE] = {
        "server_state", GAUGE, METRIC_FIXED, {"state"}, NULL,
        "1 for the state the server is in, 0 for the others."},

    [METRIC_HTTP_REQUESTS] = {
        "http_requests_total", COUNTER, METRIC_GROWING, {"endpoint", "code"}, NULL,
        "Complete HTTP answers."},
    [METRIC_HTTP_SECONDS] = {
        "http_request_seconds", HISTOGRAM, METRIC_GROWING, {"endpoint"}, &durations,
        "From a request's arrival to the end of its answer."},
    [METRIC_HTTP_CONNECTIONS] = {
        "http_connections", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Open connections."},
    [METRIC_HTTP_UNSENT] = {
        "http_unsent_bytes", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Bytes of answers that wait for slow readers."},
    [METRIC_HTTP_RECEIVING] = {
        "http_receiving_bytes", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Bytes of requests that are not complete."},
    [METRIC_REFUSED] = {
        "refused_total", COUNTER, METRIC_GROWING, {"reason"}, NULL,
        "Requests refused before the engine saw them."},
    [METRIC_CANCELLED] = {
        "cancelled_total", COUNTER, METRIC_GROWING, {"reason"}, NULL,
        "Requests ended early by the server or by their client's leaving."},

    [METRIC_RUNNING] = {
        "num_requests_running", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Choices whose sequence runs."},
    [METRIC_WAITING] = {
        "num_requests_waiting", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Choices in the queue."},
    [METRIC_HELD_TOKENS] = {
        "prompt_tokens_held", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Prompt tokens of the choices that wait or run."},
    [METRIC_PROMPT_TOKENS] = {
        "prompt_tokens_total", COUNTER, METRIC_PLAIN, {NULL}, NULL,
        "Prompt tokens processed, counted with the first generated token."},
    [METRIC_GENERATION_TOKENS] = {
        "generation_tokens_total", COUNTER, METRIC_PLAIN, {NULL}, NULL,
        "Tokens generated."},
    [METRIC_SUCCESS] = {
        "request_success_total", COUNTER, METRIC_FIXED, {"finished_reason"}, NULL,
        "Choices that ended by themselves."},
    [METRIC_FAILED] = {
        "request_failed_total", COUNTER, METRIC_FIXED, {"finished_reason"}, NULL,
        "Choices that were cancelled or failed."},
    [METRIC_TTFT] = {
        "time_to_first_token_seconds", HISTOGRAM, METRIC_PLAIN, {NULL}, &durations,
        "From a request's arrival to the first token of each choice."},
    [METRIC_ITL] = {
        "inter_token_latency_seconds", HISTOGRAM, METRIC_PLAIN, {NULL}, &durations,
        "Between two tokens of a choice."},
    [METRIC_E2E] = {
        "e2e_request_latency_seconds", HISTOGRAM, METRIC_PLAIN, {NULL}, &durations,
        "From a request's arrival to the end of each choice that ended by itself."},
    [METRIC_QUEUE_TIME] = {
        "request_queue_time_seconds", HISTOGRAM, METRIC_PLAIN, {NULL}, &durations,
        "In the queue, of choices that left it to run."},
    [METRIC_REQUEST_PROMPT] = {
        "request_prompt_tokens", HISTOGRAM, METRIC_PLAIN, {NULL}, &lengths,
        "Prompt length of the choices that ran."},
    [METRIC_REQUEST_GENERATION] = {
        "request_generation_tokens", HISTOGRAM, METRIC_PLAIN, {NULL}, &lengths,
        "Tokens generated by the choices that ran."},
    [METRIC_TOKEN_TO_SOCKET] = {
        "token_to_socket_seconds", HISTOGRAM, METRIC_PLAIN, {NULL}, &deliveries,
        "From the engine's token to the socket having taken its bytes."},

    [METRIC_EXITS] = {
        "exit_total", COUNTER, METRIC_LOOPS, {"loop"}, NULL,
        "Tokens by the loop at which they left."},
    [METRIC_LOOP_COMPUTE] = {
        "loop_compute_seconds", HISTOGRAM, METRIC_LOOPS_WORKERS, {"loop", "worker"}, &parts,
        "Batch a token's live row was computed in, by the worker's clock."},
    [METRIC_LOOP_WAIT] = {
        "loop_wait_seconds", HISTOGRAM, METRIC_LOOPS_WORKERS, {"loop", "worker"}, &parts,
        "Wait of a token's live row for its batch, by the worker's clock."},
    [METRIC_HOP] = {
        "hop_seconds", HISTOGRAM, METRIC_WORKERS, {"worker"}, &parts,
        "Way of a token's live row to the worker, as far as the clocks' offset is known."},

    [METRIC_KV_USAGE] = {
        "kv_cache_usage_ratio", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Reserved share of the KV blocks of the fullest worker, 0 to 1."},
    [METRIC_SEQUENCES] = {
        "scheduler_sequences", GAUGE, METRIC_FIXED, {"state"}, NULL,
        "Sequences by what the scheduler does with them."},
    [METRIC_WORKER_UP] = {
        "worker_up", GAUGE, METRIC_WORKERS_LABEL, {"worker", "host"}, NULL,
        "1 while the cluster has the worker."},
    [METRIC_WORKER_BUSY] = {
        "worker_busy_seconds_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Time the worker computed."},
    [METRIC_WORKER_IDLE] = {
        "worker_idle_seconds_total", COUNTER, METRIC_WORKERS_LABEL, {"worker", "reason"}, NULL,
        "Time the worker did not compute: nothing to do, or rows held back for a fuller batch."},
    [METRIC_BATCHES] = {
        "batches_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Batches computed."},
    [METRIC_ROWS] = {
        "rows_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Rows computed."},
    [METRIC_LOOP_ROWS] = {
        "loop_rows_total", COUNTER, METRIC_LOOPS_WORKERS, {"loop", "worker"}, NULL,
        "Rows computed by the loop they were at."},
    [METRIC_HEAD_ROWS] = {
        "head_rows_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Rows that went through the head."},
    [METRIC_BATCH_ROWS] = {
        "batch_rows", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "Rows per batch between the last two looks at the worker; 0 without a batch."},
    [METRIC_BATCH_COST] = {
        "batch_cost_seconds", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "What a batch costs before its first row, as the worker measures it."},
    [METRIC_ROW_COST] = {
        "row_cost_seconds", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "What each row adds to a batch, as the worker measures it."},
    [METRIC_KV_BLOCKS_USED] = {
        "kv_blocks_used", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "KV blocks in use."},
    [METRIC_KV_BLOCKS] = {
        "kv_blocks", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "KV blocks the worker has."},
    [METRIC_PARKED] = {
        "parked_rows", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "Rows parked after an early exit."},
    [METRIC_PARKED_TOTAL] = {
        "rows_parked_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Rows that were parked."},
    [METRIC_REVIVED_TOTAL] = {
        "rows_revived_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Parked rows that went on, because a later token went deeper."},
    [METRIC_ROW_SLOTS_USED] = {
        "row_slots_used", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "Places for rows in use."},
    [METRIC_ROW_SLOTS] = {
        "row_slots", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "Places for rows the worker has."},
    [METRIC_WORKER_SEQUENCES] = {
        "worker_sequences", GAUGE, METRIC_WORKERS, {"worker"}, NULL,
        "Sequences open on the worker."},
    [METRIC_MESSAGES_SENT] = {
        "messages_sent_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Messages the worker sent."},
    [METRIC_BYTES_SENT] = {
        "sent_bytes_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Bytes the worker sent."},
    [METRIC_STALE_FRAMES] = {
        "stale_frames_total", COUNTER, METRIC_WORKERS, {"worker"}, NULL,
        "Frames of sequences that were closed meanwhile."},

    [METRIC_PROCESS_CPU] = {
        "process_cpu_seconds_total", COUNTER, METRIC_PLAIN, {NULL}, NULL,
        "User and system time of the server process."},
    [METRIC_PROCESS_RESIDENT] = {
        "process_resident_memory_bytes", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Resident memory of the server process."},
    [METRIC_PROCESS_VIRTUAL] = {
        "process_virtual_memory_bytes", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Virtual memory of the server process."},
    [METRIC_PROCESS_START] = {
        "process_start_time_seconds", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Start of the server process, unix time."},
    [METRIC_PROCESS_OPEN_FDS] = {
        "process_open_fds", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "Open file descriptors of the server process."},
    [METRIC_PROCESS_MAX_FDS] = {
        "process_max_fds", GAUGE, METRIC_PLAIN, {NULL}, NULL,
        "The most file descriptors the server process may open."},
};
/* clang-format on */

const char *metric_type_name(enum metric_type type)
{
    return type == METRIC_COUNTER ? "counter" : type == METRIC_GAUGE ? "gauge" : "histogram";
}
