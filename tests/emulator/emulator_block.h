/* Threads of the block that runs, for the files that make them wait. */
#ifndef EMULATOR_EMULATOR_BLOCK_H
#define EMULATOR_EMULATOR_BLOCK_H

#include "tests/emulator/emulator_inside.h"
#include "tests/emulator/emulator_seen.h"

enum emulator_state { EMULATOR_READY, EMULATOR_AT_BARRIER, EMULATOR_IN_WARP, EMULATOR_ENDED };
enum { EMULATOR_MAX_COPIES = 256 };

struct emulator_copy {
    unsigned char *dst;
    const unsigned char *src; /* NULL: zeros */
    int group;                /* -1: not committed */
};
struct emulator_fiber {
    struct emulator_seen seen; /* first: emulator_now points to it */
    struct emulator_stack stack;
    int number;
    enum emulator_state state;
    const char *what, *file; /* it waits for */
    int line;
    int n_copies, n_groups;
    struct emulator_copy copies[EMULATOR_MAX_COPIES];
};
/* Values of one exchange while those of the one before are still read. */
struct emulator_warp {
    union emulator_slot slots[2][32];
    double products[2][16][8]; /* of cuda_mma_bf16 */
    uint32_t n_exchanges;
    uint32_t arrived;
    const char *what, *file;
    int line;
};

struct emulator_fiber *emulator_fiber_now(void);
struct emulator_fiber *emulator_fiber_at(int i);
struct emulator_warp *emulator_warp_now(void);
int emulator_block_threads(void);
const unsigned char *emulator_shared_end(void);
void emulator_give_way(enum emulator_state state, const char *what, const char *file, int line);
/* Names kernel, block and thread. */
_Noreturn void emulator_kernel_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
