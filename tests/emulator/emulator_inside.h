/* What the emulator's own files give each other. All of it runs under one lock (emulator_enter). */
#ifndef EMULATOR_EMULATOR_INSIDE_H
#define EMULATOR_EMULATOR_INSIDE_H

#include "tests/emulator/emulator.h"

#include <pthread.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define EMULATOR_ASAN 1
#else
#define EMULATOR_ASAN 0
#endif

#define EMULATOR_MAX_DEVICES  8
#define EMULATOR_MAX_THREADS  1024
#define EMULATOR_SHARED_PLAIN ((size_t)48 * 1024)
#define EMULATOR_SHARED_MOST  ((size_t)227 * 1024)

/* ---- emulator_device.c: the lock, errors, devices -------------------------------------------- */

/* Takes the lock; not cudaSuccess when this call is the one that shall fail, or the device died. */
cudaError_t emulator_enter(void);
/* The same for calls that give back or ask: they never fail on demand. */
cudaError_t emulator_enter_quietly(void);
/* Gives the lock back, remembers an error for cudaGetLastError; returns code. */
cudaError_t emulator_leave(cudaError_t code);
int emulator_device(void); /* the calling thread's */
size_t emulator_memory_total(void);
bool emulator_is_lazy(void);
/* Ends the program with one line. */
_Noreturn void emulator_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Where operations that run report a failure for all later calls. */
void emulator_poison_context(cudaError_t code);
cudaError_t emulator_take_run_failure(void);
/* Shared memory a kernel has been allowed. */
size_t emulator_shared_limit(const void *function);
void emulator_count(uint64_t n_kernels, uint64_t n_copies, uint64_t n_graph_launches);
void emulator_count_live(int delta);

/* ---- emulator_memory.c ----------------------------------------------------------------------- */

enum emulator_place { EMULATOR_PAGEABLE, EMULATOR_PINNED, EMULATOR_DEVICE };
/* Where [p, p + len) lies; false when it begins in a known range and does not end there. */
bool emulator_place_of(const void *p, size_t len, enum emulator_place *place, int *device);
/* Whether p is the end of an allocation: of an empty array in it. */
bool emulator_is_end(const void *p);
/* Looks at all guards; ends the program naming `what` if one was written over. */
void emulator_check_guards(const char *what);
cudaError_t emulator_check_copy(const void *dst, const void *src, size_t len,
                                enum cudaMemcpyKind kind);
void emulator_memory_reset(void);

/* ---- emulator_arena.c: device memory's addresses, closed to the host --------------------------
 */

void *emulator_arena_take(size_t len); /* whole pages; NULL: no addresses left */
void emulator_arena_give_back(void *p, size_t len);
void emulator_arena_open(void); /* nests */
void emulator_arena_close(void);
void emulator_arena_call(cudaHostFn_t function, void *user);

/* ---- emulator_stream.c: operations and their order ------------------------------------------- */

enum emulator_op_kind {
    EMULATOR_OP_KERNEL,
    EMULATOR_OP_COPY,
    EMULATOR_OP_SET,
    EMULATOR_OP_RECORD,
    EMULATOR_OP_WAIT,
    EMULATOR_OP_CALL, /* of the host */
    EMULATOR_OP_RUN,  /* of a stand-in */
    EMULATOR_OP_GRAPH
};
struct emulator_kernel {
    const char *name;
    void (*invoke)(const void *arguments);
    dim3 grid, block;
    size_t shared_bytes;
};
struct emulator_op {
    struct emulator_op *next;
    enum emulator_op_kind kind;
    uint64_t number; /* in its stream, from 1 */
    union {
        struct emulator_kernel kernel;
        struct {
            void *dst;
            const void *src;
            size_t dst_pitch, src_pitch, width, height;
        } copy;
        struct {
            void *p;
            int value;
            size_t len;
        } set;
        cudaEvent_t record;
        struct {
            cudaStream_t stream;
            uint64_t number;
        } wait;
        struct {
            cudaHostFn_t function;
            void *user;
        } call;
        struct {
            const char *name;
            void (*run)(const void *arguments);
        } run;
        cudaGraphExec_t graph;
    };
    size_t len_bytes; /* of the arguments */
    _Alignas(16) unsigned char arguments[];
};

struct CUstream_st {
    struct CUstream_st *next;
    int device;
    bool is_blocking; /* ordered with the default stream */
    struct emulator_op *first, *last;
    uint64_t n_added, n_done;
    struct CUgraph_st *capture;
    enum cudaStreamCaptureMode capture_mode;
    pthread_t capture_thread; /* that began it */
    bool is_capture_broken;
};
struct CUevent_st {
    cudaStream_t stream; /* of the last record; NULL: never, or done */
    uint64_t number;
    bool is_done;
    bool has_time;
    double at_ms;
};

/* Adds a copy of op (with its arguments) to the stream or to what it captures. */
cudaError_t emulator_add(cudaStream_t stream, const struct emulator_op *op, const void *arguments);
/* The stream that NULL stands for; NULL when `stream` is not one of ours. */
cudaStream_t emulator_stream_of(cudaStream_t stream);
/* Runs operations of the stream up to number. */
void emulator_run_until(cudaStream_t stream, uint64_t number);
void emulator_run_all(void);
/* Runs the first operation of a stream that has one. */
void emulator_run_first(cudaStream_t stream);
/* What became of it: an operation that ran may have killed the device. */
cudaError_t emulator_leave_after_run(void);
void emulator_run_op(const struct emulator_op *op);
/* cudaErrorStreamCaptureUnsupported when a capture is under way that forbids such calls to this
 * thread. */
cudaError_t emulator_refuse_in_capture(void);
cudaError_t emulator_break_capture(cudaStream_t stream);
struct emulator_op *emulator_op_copy(const struct emulator_op *op, const void *arguments);

/* ---- emulator_graph.c ------------------------------------------------------------------------ */

struct CUgraph_st {
    struct emulator_op *first, *last;
    size_t n_ops;
};
struct CUgraphExec_st {
    struct CUgraph_st ops;
};
void emulator_graph_clear(struct CUgraph_st *graph);
void emulator_graph_append(struct CUgraph_st *graph, struct emulator_op *op);

/* ---- emulator_block.c: runs a kernel ----------------------------------------------------------
 */

/* "forward", ...: false when it is none. */
bool emulator_order_parse(const char *order);
void emulator_run_kernel(const struct emulator_kernel *kernel, const void *arguments);

/* ---- emulator_fiber.c: stacks that take turns --------------------------------------------------
 */

struct emulator_stack {
    void *saved; /* where it goes on */
    unsigned char *low;
    size_t len;
    void *shadow; /* of the address sanitizer */
};
/* A stack that begins in run() and never returns from it. */
void emulator_stack_create(struct emulator_stack *stack, void (*run)(void));
/* From the stack that runs to another. */
void emulator_stack_switch(struct emulator_stack *from, struct emulator_stack *to);
/* First thing in run(), with the stack that is left behind by the first switch. */
void emulator_stack_entered(struct emulator_stack *from);

#endif
