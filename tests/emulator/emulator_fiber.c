/* Stacks that take turns: a switch saves what a call preserves and goes on where the other stack
 * stopped. x86-64 by hand (some nanoseconds); ucontext elsewhere. */
#include "tests/emulator/emulator_inside.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
/* Its frames are some times larger. */
#define STACK_BYTES ((size_t)256 * 1024)
#else
#define STACK_BYTES ((size_t)64 * 1024)
#endif

#if defined(__x86_64__)

void emulator_swap(void **save, void *load);
__asm__(".text\n"
        ".globl emulator_swap\n"
        ".type emulator_swap, @function\n"
        "emulator_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size emulator_swap, . - emulator_swap\n");

/* The first switch pops six registers and returns into run(), which finds the stack as after a
 * call. */
static void *begin(unsigned char *low, size_t len, void (*run)(void))
{
    void **top = (void **)(low + len);
    memset(top - 8, 0, 8 * sizeof *top);
    top[-2] = (void *)run;
    return top - 8;
}

static void swap(struct emulator_stack *from, struct emulator_stack *to)
{
    emulator_swap(&from->saved, to->saved);
}

#else
#include <stdlib.h>
#include <ucontext.h>

static void *begin(unsigned char *low, size_t len, void (*run)(void))
{
    ucontext_t *context = calloc(1, sizeof *context);
    if (context == NULL || getcontext(context) != 0)
        emulator_die("no memory for a thread's context");
    context->uc_stack.ss_sp = low;
    context->uc_stack.ss_size = len;
    makecontext(context, run, 0);
    return context;
}

static void swap(struct emulator_stack *from, struct emulator_stack *to)
{
    if (from->saved == NULL)
        from->saved = calloc(1, sizeof(ucontext_t));
    if (from->saved == NULL || swapcontext(from->saved, to->saved) != 0)
        emulator_die("a thread's context could not be switched");
}
#endif

void emulator_stack_create(struct emulator_stack *stack, void (*run)(void))
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *p = mmap(NULL, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    /* The page below: a thread that needs more stack crashes instead of writing into another's. */
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0)
        emulator_die("no memory for the stacks of a block's threads");
    *stack = (struct emulator_stack){.low = p + page, .len = STACK_BYTES};
    stack->saved = begin(stack->low, stack->len, run);
}

/* The host's thread has a stack of its own that is known only once it has been left: `to` is who
 * comes back here. */
void emulator_stack_switch(struct emulator_stack *from, struct emulator_stack *to)
{
#if EMULATOR_ASAN
    const void *low;
    size_t len;
    __sanitizer_start_switch_fiber(&from->shadow, to->low, to->len);
    swap(from, to);
    __sanitizer_finish_switch_fiber(from->shadow, &low, &len);
    to->low = (unsigned char *)(uintptr_t)low;
    to->len = len;
#else
    swap(from, to);
#endif
}

void emulator_stack_entered(struct emulator_stack *from)
{
#if EMULATOR_ASAN
    const void *low;
    size_t len;
    __sanitizer_finish_switch_fiber(NULL, &low, &len);
    from->low = (unsigned char *)(uintptr_t)low;
    from->len = len;
#else
    (void)from;
#endif
}
