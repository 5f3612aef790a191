/* What tests and other stand-ins ask of the emulator beyond CUDA's interface.
 *
 * Streams. An operation of a stream runs only when somebody waits for it; a query runs one
 * operation and may then still say "not ready". Host code that reads a result too early, or writes
 * into memory that a queued copy still has to read, gets wrong values. That goes for pageable
 * memory, too: the emulator makes no hidden copy of it. CAROUSEL_EMULATOR_LAZY=0 (or
 * emulator_set_lazy) runs every operation at once, the other extreme of what a device may do.
 *
 * Kernels. Blocks run one after another, threads of a block in turns, from one wait to the next, in
 * the order CAROUSEL_EMULATOR_ORDER=forward|reverse|random:SEED. What a kernel does wrong (a
 * barrier that not all threads reach, a wild pointer, an unaligned vector) ends the program with
 * one line that names kernel, block and thread.
 *
 * Memory. Device and pinned memory comes filled with 0xff bytes (NaN in fp32 and bf16, -1 in
 * integers) and has guards around it that are looked at after every kernel.
 *
 * CAROUSEL_EMULATOR_DEVICES (1), CAROUSEL_EMULATOR_MEMORY (bytes of a device, 2 GiB). */
#ifndef EMULATOR_EMULATOR_H
#define EMULATOR_EMULATOR_H

#include <cuda_runtime_api.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "forward", "reverse", "random:SEED"; anything else ends the program. NULL: what the environment
 * says. */
void emulator_set_order(const char *order);
/* Only while no operation is queued. */
void emulator_set_lazy(bool is_lazy);
void emulator_set_devices(int n);
/* Bytes of a device's memory; what is allocated stays. */
void emulator_set_memory(size_t total_bytes);

/* The n-th call (1 is the next) that can fail returns code instead of doing its work; 0: none. A
 * kernel's launch counts, too; calls that give back or only ask do not. */
void emulator_fail_call(int n, cudaError_t code);
/* The next n operations that run (not: are queued) fail with code, as a kernel that crashed: the
 * wait for them reports it, and so does every call after it until emulator_revive. */
void emulator_fail_run(cudaError_t code);
void emulator_revive(void);

/* Allocations, streams, events and graphs that are still there. */
int emulator_n_live(void);
/* Kernels, copies and graph launches since the start. */
struct emulator_counts {
    uint64_t n_kernels, n_copies, n_graph_launches;
};
struct emulator_counts emulator_counts(void);

/* For stand-ins of libraries: run(arguments) in stream order, captured like a kernel. `arguments`
 * are copied. `name` has to stay. */
cudaError_t emulator_enqueue(cudaStream_t stream, const char *name, void (*run)(const void *),
                             const void *arguments, size_t len_bytes);
/* Whether [p, p + len) lies in one allocation of device memory (or pinned host memory). */
bool emulator_is_device(const void *p, size_t len);

#ifdef __cplusplus
}
#endif
#endif
