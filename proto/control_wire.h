/* What the files behind control.h share: our kinds against protobuf's, and the checks of a peer's
 * fields. Nobody else includes this. */
#ifndef PROTO_CONTROL_WIRE_H
#define PROTO_CONTROL_WIRE_H

#include "proto/control.h"

#include "proto/carousel.pb-c.h"

/* A longer control message is refused before it is parsed. */
#define CONTROL_MAX_BYTES ((size_t)64 << 20)

/* Our kinds are the field numbers of the oneof, so neither side needs a table. */
_Static_assert((int)CONTROL_HELLO == (int)CAROUSEL__CONTROL__BODY_HELLO, "kinds = field numbers");
_Static_assert((int)CONTROL_WELCOME == (int)CAROUSEL__CONTROL__BODY_WELCOME, "");
_Static_assert((int)CONTROL_READY == (int)CAROUSEL__CONTROL__BODY_READY, "");
_Static_assert((int)CONTROL_OPEN == (int)CAROUSEL__CONTROL__BODY_OPEN, "");
_Static_assert((int)CONTROL_OPENED == (int)CAROUSEL__CONTROL__BODY_OPENED, "");
_Static_assert((int)CONTROL_CLOSE == (int)CAROUSEL__CONTROL__BODY_CLOSE, "");
_Static_assert((int)CONTROL_CLOSED == (int)CAROUSEL__CONTROL__BODY_CLOSED, "");
_Static_assert((int)CONTROL_FAILED == (int)CAROUSEL__CONTROL__BODY_FAILED, "");
_Static_assert((int)CONTROL_TOKENS == (int)CAROUSEL__CONTROL__BODY_TOKENS, "");
_Static_assert((int)CONTROL_OBSERVATIONS == (int)CAROUSEL__CONTROL__BODY_OBSERVATIONS, "");
_Static_assert((int)CONTROL_STATS_REQUEST == (int)CAROUSEL__CONTROL__BODY_STATS_REQUEST, "");
_Static_assert((int)CONTROL_STATS == (int)CAROUSEL__CONTROL__BODY_STATS, "");
_Static_assert((int)CONTROL_SHUTDOWN == (int)CAROUSEL__CONTROL__BODY_SHUTDOWN, "");
_Static_assert((int)CONTROL_GOODBYE == (int)CAROUSEL__CONTROL__BODY_GOODBYE, "");
_Static_assert((int)CONTROL_TRACE_REQUEST == (int)CAROUSEL__CONTROL__BODY_TRACE_REQUEST, "");
_Static_assert((int)CONTROL_TRACE == (int)CAROUSEL__CONTROL__BODY_TRACE, "");

/* Each is STATUS_OK or STATUS_CORRUPT with the field's name, its value and what is allowed. */
enum status control_check_range(const char *field, uint64_t value, uint64_t low, uint64_t high,
                                struct err *err);
/* NaN is out of every range. */
enum status control_check_float(const char *field, float value, float low, float high,
                                struct err *err);
/* A token id: not negative; the vocabulary is not known here. */
enum status control_check_id(const char *field, int32_t id, struct err *err);
enum status control_check_sequence(const char *field, uint64_t sequence, struct err *err);
/* Two arrays that describe the same things must be of one length, and not longer than max. */
enum status control_check_pairs(const char *field, size_t n_ids, size_t n_values, size_t max,
                                struct err *err);

/* Fill out->tokens, out->observations or out->trace; nothing is allocated on failure. */
enum status control_read_tokens(const Carousel__Tokens *from, struct control_message *out,
                                struct err *err);
enum status control_read_observations(const Carousel__Observations *from,
                                      struct control_message *out, struct err *err);
enum status control_read_trace(const Carousel__Trace *from, struct control_message *out,
                               struct err *err);

#endif
