/* The addresses of device memory: one region that the host cannot touch, open only while operations
 * of a stream run. */
#include "tests/emulator/emulator_inside.h"

#include <sys/mman.h>
#include <unistd.h>

/* Reserved, not used: pieces lie one behind the other and are given out again only when the last
 * ones, or all, have come back. */
#define ARENA_BYTES ((size_t)256 << 30)

static struct {
    unsigned char *base;
    size_t used;
    int n_pieces;
    int n_open;
} arena;

static size_t whole_pages(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (len + page - 1) / page * page;
}

static void protect(int how)
{
    if (arena.used > 0 && mprotect(arena.base, arena.used, how) != 0)
        emulator_die("device memory could not be %s", how == PROT_NONE ? "closed" : "opened");
}

void *emulator_arena_take(size_t len)
{
    if (arena.base == NULL) {
        arena.base =
            mmap(NULL, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena.base == MAP_FAILED)
            emulator_die("no addresses for device memory");
    }
    size_t room = whole_pages(len);
    if (room < len || room > ARENA_BYTES - arena.used)
        return NULL;
    unsigned char *p = arena.base + arena.used;
    arena.used += room;
    arena.n_pieces++;
    if (arena.n_open > 0)
        protect(PROT_READ | PROT_WRITE);
    return p;
}

void emulator_arena_give_back(void *p, size_t len)
{
    size_t room = whole_pages(len);
    /* Its pages go; a kernel that still has the address reads zeros and is seen by its results. */
    if (madvise(p, room, MADV_DONTNEED) != 0)
        emulator_die("device memory could not be given back");
    bool is_last = (unsigned char *)p + room == arena.base + arena.used;
    if (mprotect(p, room, PROT_NONE) != 0)
        emulator_die("device memory could not be closed");
    if (is_last)
        arena.used -= room;
    if (--arena.n_pieces == 0)
        arena.used = 0;
}

void emulator_arena_open(void)
{
    if (arena.n_open++ == 0)
        protect(PROT_READ | PROT_WRITE);
}

void emulator_arena_close(void)
{
    if (--arena.n_open == 0)
        protect(PROT_NONE);
}

/* A function of the host in the middle of a stream's operations. */
void emulator_arena_call(cudaHostFn_t function, void *user)
{
    protect(PROT_NONE);
    function(user);
    protect(PROT_READ | PROT_WRITE);
}
