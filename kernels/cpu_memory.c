/* Memory of the CPU backend: zeroed mappings that cost nothing until they are touched. */
#include "kernels/cpu_backend.h"

#include <sys/mman.h>

void *cpu_memory_map(size_t len_bytes)
{
    void *p = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void *cpu_memory_map_huge(size_t len_bytes)
{
    void *p = cpu_memory_map(len_bytes);
    /* A hint: where the system has no huge pages, all works the same, a little slower. */
    if (p != NULL && len_bytes >= CPU_HUGE_PAGE_BYTES)
        (void)madvise(p, len_bytes, MADV_HUGEPAGE);
    return p;
}

void cpu_memory_unmap(void *data, size_t len_bytes)
{
    if (data != NULL)
        munmap(data, len_bytes);
}

enum status cpu_scratch_grow(struct cpu_scratch *scratch, size_t len_bytes, const char *what,
                             struct err *err)
{
    if (len_bytes <= scratch->len_bytes)
        return STATUS_OK;
    /* Half as much again, so that a context that grows token by token rarely comes back here. */
    size_t want = len_bytes + len_bytes / 2;
    /* Sums and packed rows are all over their area: without huge pages they miss the TLB. */
    if (want > CPU_HUGE_PAGE_BYTES / 8)
        want = (want + CPU_HUGE_PAGE_BYTES - 1) / CPU_HUGE_PAGE_BYTES * CPU_HUGE_PAGE_BYTES;
    void *data = want < len_bytes ? NULL : cpu_memory_map_huge(want);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes of %s scratch", want, what);
    cpu_memory_unmap(scratch->data, scratch->len_bytes);
    *scratch = (struct cpu_scratch){.data = data, .len_bytes = want};
    return STATUS_OK;
}

void cpu_scratch_free(struct cpu_scratch *scratch)
{
    cpu_memory_unmap(scratch->data, scratch->len_bytes);
    *scratch = (struct cpu_scratch){0};
}
