/* What a thread of an emulated kernel sees of its block, and calls to wait in it: cuda_emulated.h
 * makes CUDA's words of it. C and C++. */
#ifndef EMULATOR_EMULATOR_SEEN_H
#define EMULATOR_EMULATOR_SEEN_H

#include <cuda_runtime_api.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulator_index {
    unsigned x, y, z;
};
struct emulator_seen {
    struct emulator_index thread, block;
    dim3 block_dim, grid_dim;
    unsigned char *shared;
    int lane;
};
union emulator_slot {
    uint32_t words[8];
    unsigned char bytes[32];
};

extern struct emulator_seen *emulator_now;

cudaError_t emulator_launch(const void *function, const char *name, void (*invoke)(const void *),
                            const void *arguments, size_t len_bytes, const void *const *pointers,
                            int n_pointers, dim3 grid, dim3 block, size_t shared_bytes,
                            cudaStream_t stream);
void emulator_barrier(const char *file, int line);
/* Gives value to the other lanes and waits for theirs; the answer is [32] and stays until the
 * warp's next exchange but one. */
const union emulator_slot *emulator_exchange(const char *what, const void *value, size_t len_bytes,
                                             const char *file, int line);
void emulator_copy_async(void *shared_dst, const void *global_src, bool is_there);
void emulator_copy_commit(void);
void emulator_copy_wait(int n_newest);
void emulator_ldmatrix(uint32_t r[4], const void *row, bool is_transposed, const char *file,
                       int line);
void emulator_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file,
                       int line);
void emulator_check_load(const void *p, size_t len_bytes);

#ifdef __cplusplus
}
#endif
#endif
