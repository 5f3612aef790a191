/* Writes the output line of a job: the envelope around the answer that every front door gives. */
#include "cli/batch_answer.h"

#include "cli/batch_hash.h"
#include "coordinator/answer.h"

#include <stdio.h>

enum { ID_BYTES = 80 };

/* Prefix, run and number of the line: an id that no other answer has. */
static void print_id(const struct batch *b, const char *prefix, uint64_t number, char id[ID_BYTES])
{
    snprintf(id, ID_BYTES, "%s_%s_%llu", prefix, b->run_id, (unsigned long long)number);
}

/* Opens the line: "id", "custom_id", "input_hash". */
static void write_head(const struct batch *b, uint64_t number, const char *custom_id,
                       uint64_t input_hash, struct json_writer *w)
{
    char id[ID_BYTES], hash[BATCH_HASH_DIGITS + 1];
    print_id(b, "batch_req", number, id);
    batch_hash_print(input_hash, hash);
    json_write_begin_object(w);
    json_write_key(w, "id");
    json_write_string(w, id);
    json_write_key(w, "custom_id");
    json_write_string(w, custom_id);
    json_write_key(w, "input_hash");
    json_write_string(w, hash);
}

void batch_answer_success(const struct batch_job *job, struct text *out)
{
    const struct batch *b = job->batch;
    const struct body *body = &job->line.body;
    char id[ID_BYTES], request_id[ID_BYTES];
    snprintf(id, sizeof id, "%s-%s-%llu", body->is_chat ? "chatcmpl" : "cmpl", b->run_id,
             (unsigned long long)job->number);
    print_id(b, "req", job->number, request_id);
    const struct answer answer = {
        .body = body,
        .tokenizer = b->session->tokenizer,
        .id = id,
        .model = b->model_name,
        .fingerprint = b->fingerprint,
        .created = job->created,
        .n_loops = (uint32_t)b->session->checkpoint->config.n_loops,
        .always_exit_loops = true,
        .n_choices = job->n_choices,
        .choices = job->answers,
    };
    struct json_writer w;
    json_writer_init(&w, out);
    write_head(b, job->number, job->line.custom_id, job->input_hash, &w);
    json_write_key(&w, "response");
    json_write_begin_object(&w);
    json_write_key(&w, "status_code");
    json_write_integer(&w, 200);
    json_write_key(&w, "request_id");
    json_write_string(&w, request_id);
    json_write_key(&w, "body");
    json_write_made(&w);
    answer_write(&answer, out);
    json_write_end_object(&w);
    json_write_key(&w, "error");
    json_write_null(&w);
    json_write_end_object(&w);
    text_adds(out, "\n");
}

void batch_answer_error(const struct batch *b, uint64_t number, const char *custom_id,
                        uint64_t input_hash, const char *code, const char *message,
                        struct text *out)
{
    struct json_writer w;
    json_writer_init(&w, out);
    write_head(b, number, custom_id, input_hash, &w);
    json_write_key(&w, "response");
    json_write_null(&w);
    json_write_key(&w, "error");
    json_write_begin_object(&w);
    json_write_key(&w, "code");
    json_write_string(&w, code);
    json_write_key(&w, "message");
    json_write_string(&w, message);
    json_write_end_object(&w);
    json_write_end_object(&w);
    text_adds(out, "\n");
}
