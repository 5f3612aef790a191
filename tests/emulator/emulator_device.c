/* The emulated machine: its lock, its devices and their limits, errors and how to have one. */
#include "tests/emulator/emulator_inside.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One block at a time runs anyway: one lock for everything. */
static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct {
    int n_devices;
    size_t memory_bytes;
    bool is_lazy;
    int fail_in; /* calls until fail_code; 0: none */
    cudaError_t fail_code, run_code;
    cudaError_t dead; /* an operation failed: all that follows does */
    int n_live;
    struct emulator_counts counts;
} machine;
static _Thread_local cudaError_t last_error;
static _Thread_local int thread_device;

enum { MAX_FUNCTIONS = 512 };
static struct {
    const void *function;
    size_t shared_bytes;
} functions[MAX_FUNCTIONS];
static int n_functions;

_Noreturn void emulator_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("emulator: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static void begin(void)
{
    pthread_mutexattr_t attr;
    if (pthread_mutexattr_init(&attr) != 0 ||
        pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE) != 0 ||
        pthread_mutex_init(&lock, &attr) != 0)
        emulator_die("the lock could not be made");
    pthread_mutexattr_destroy(&attr);
    const char *devices = getenv("CAROUSEL_EMULATOR_DEVICES");
    const char *memory = getenv("CAROUSEL_EMULATOR_MEMORY");
    const char *lazy = getenv("CAROUSEL_EMULATOR_LAZY");
    machine.n_devices = devices != NULL ? atoi(devices) : 1;
    if (machine.n_devices < 0 || machine.n_devices > EMULATOR_MAX_DEVICES)
        emulator_die("CAROUSEL_EMULATOR_DEVICES=%s: 0 to %d", devices, EMULATOR_MAX_DEVICES);
    machine.memory_bytes = memory != NULL ? strtoull(memory, NULL, 10) : (size_t)2 << 30;
    machine.is_lazy = lazy == NULL || strcmp(lazy, "0") != 0;
    emulator_set_order(NULL);
}

cudaError_t emulator_enter_quietly(void)
{
    pthread_once(&once, begin);
    pthread_mutex_lock(&lock);
    return machine.dead;
}

cudaError_t emulator_enter(void)
{
    cudaError_t code = emulator_enter_quietly();
    if (code == cudaSuccess && machine.n_devices == 0)
        code = cudaErrorNoDevice;
    if (machine.fail_in > 0 && --machine.fail_in == 0)
        code = machine.fail_code;
    return code;
}

cudaError_t emulator_leave(cudaError_t code)
{
    pthread_mutex_unlock(&lock);
    if (code != cudaSuccess && code != cudaErrorNotReady)
        last_error = code;
    return code;
}

int emulator_device(void)
{
    return thread_device;
}
size_t emulator_memory_total(void)
{
    return machine.memory_bytes;
}
bool emulator_is_lazy(void)
{
    return machine.is_lazy;
}
void emulator_poison_context(cudaError_t code)
{
    if (machine.dead == cudaSuccess)
        machine.dead = code;
}
cudaError_t emulator_take_run_failure(void)
{
    cudaError_t code = machine.run_code;
    machine.run_code = cudaSuccess;
    return code;
}
void emulator_count(uint64_t n_kernels, uint64_t n_copies, uint64_t n_graph_launches)
{
    machine.counts.n_kernels += n_kernels;
    machine.counts.n_copies += n_copies;
    machine.counts.n_graph_launches += n_graph_launches;
}
void emulator_count_live(int delta)
{
    machine.n_live += delta;
}

/* ---- what tests set ---------------------------------------------------------------------------
 */

void emulator_set_order(const char *order)
{
    const char *name = order != NULL ? order : getenv("CAROUSEL_EMULATOR_ORDER");
    if (!emulator_order_parse(name != NULL ? name : "forward"))
        emulator_die("order \"%s\": forward, reverse or random:SEED", name);
}
void emulator_set_lazy(bool is_lazy)
{
    emulator_enter_quietly();
    emulator_run_all();
    machine.is_lazy = is_lazy;
    emulator_leave(cudaSuccess);
}
void emulator_set_devices(int n)
{
    emulator_enter_quietly();
    machine.n_devices = n;
    emulator_leave(cudaSuccess);
}
void emulator_set_memory(size_t total_bytes)
{
    emulator_enter_quietly();
    machine.memory_bytes = total_bytes;
    emulator_leave(cudaSuccess);
}
void emulator_fail_call(int n, cudaError_t code)
{
    emulator_enter_quietly();
    machine.fail_in = n;
    machine.fail_code = code;
    emulator_leave(cudaSuccess);
}
void emulator_fail_run(cudaError_t code)
{
    emulator_enter_quietly();
    machine.run_code = code;
    emulator_leave(cudaSuccess);
}
void emulator_revive(void)
{
    emulator_enter_quietly();
    machine.dead = machine.run_code = cudaSuccess;
    machine.fail_in = 0;
    last_error = cudaSuccess;
    emulator_leave(cudaSuccess);
}
int emulator_n_live(void)
{
    emulator_enter_quietly();
    int n = machine.n_live;
    emulator_leave(cudaSuccess);
    return n;
}
struct emulator_counts emulator_counts(void)
{
    emulator_enter_quietly();
    struct emulator_counts counts = machine.counts;
    emulator_leave(cudaSuccess);
    return counts;
}

/* ---- errors ------------------------------------------------------------------------------------
 */

cudaError_t cudaGetLastError(void)
{
    cudaError_t code = last_error;
    last_error = cudaSuccess;
    return code;
}
cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "the driver is older than the runtime needs"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was met"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "host memory is registered already"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "host memory is not registered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "the capture was not begun on this stream"},
};

const char *cudaGetErrorName(cudaError_t code)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].code == code)
            return errors[i].name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t code)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].code == code)
            return errors[i].text;
    return "unrecognized error code";
}

/* ---- devices -----------------------------------------------------------------------------------
 */

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    cudaError_t code = emulator_enter();
    *count = code == cudaSuccess ? machine.n_devices : 0;
    return emulator_leave(code);
}
cudaError_t cudaSetDevice(int device)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (device < 0 || device >= machine.n_devices))
        code = cudaErrorInvalidDevice;
    if (code == cudaSuccess)
        thread_device = device;
    return emulator_leave(code);
}
cudaError_t cudaGetDevice(int *device)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        *device = thread_device;
    return emulator_leave(code);
}
cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    (void)flags;
    return emulator_leave(emulator_enter());
}

/* A Hopper's limits, but few multiprocessors: grids that fill the chip stay small. */
static const struct cudaDeviceProp properties = {
    .name = "emulated GPU",
    .sharedMemPerBlock = EMULATOR_SHARED_PLAIN,
    .sharedMemPerBlockOptin = EMULATOR_SHARED_MOST,
    .sharedMemPerMultiprocessor = (size_t)228 * 1024,
    .regsPerBlock = 65536,
    .warpSize = 32,
    .maxThreadsPerBlock = EMULATOR_MAX_THREADS,
    .maxGridSize = {2147483647, 65535, 65535},
    .major = 9,
    .minor = 0,
    .multiProcessorCount = 4,
    .l2CacheSize = 1024 * 1024, /* what is timed with cold caches overwrites more than this */
    .canMapHostMemory = 1,
};

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (device < 0 || device >= machine.n_devices))
        code = cudaErrorInvalidDevice;
    if (code == cudaSuccess) {
        *prop = properties;
        prop->totalGlobalMem = machine.memory_bytes;
        prop->pciBusID = device + 1;
    }
    return emulator_leave(code);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    struct cudaDeviceProp prop;
    cudaError_t code = cudaGetDeviceProperties(&prop, device);
    if (code != cudaSuccess)
        return code;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = prop.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)prop.sharedMemPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *value = prop.warpSize;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = prop.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = prop.l2CacheSize;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = prop.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = prop.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)prop.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)prop.sharedMemPerBlockOptin;
        break;
    default:
        return emulator_leave((emulator_enter_quietly(), cudaErrorInvalidValue));
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int device)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (device < 0 || device >= machine.n_devices))
        code = cudaErrorInvalidDevice;
    if (code == cudaSuccess)
        snprintf(id, (size_t)len, "0000:%02x:00.0", device + 1);
    return emulator_leave(code);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess) {
        *least = 0;
        *greatest = -5;
    }
    return emulator_leave(code);
}

/* ---- kernels' attributes -----------------------------------------------------------------------
 */

size_t emulator_shared_limit(const void *function)
{
    for (int i = 0; i < n_functions; i++)
        if (functions[i].function == function)
            return functions[i].shared_bytes;
    return EMULATOR_SHARED_PLAIN;
}

static cudaError_t allow_shared(const void *function, int value)
{
    if (value < 0 || (size_t)value > EMULATOR_SHARED_MOST)
        return cudaErrorInvalidValue;
    int i = 0;
    while (i < n_functions && functions[i].function != function)
        i++;
    if (i == MAX_FUNCTIONS)
        emulator_die("more than %d kernels with shared memory above 48 KB", MAX_FUNCTIONS);
    n_functions = i == n_functions ? i + 1 : n_functions;
    functions[i].function = function;
    functions[i].shared_bytes = (size_t)value;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attr, int value)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && attr == cudaFuncAttributeMaxDynamicSharedMemorySize)
        code = allow_shared(function, value);
    return emulator_leave(code);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attr, const void *function)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        *attr = (struct cudaFuncAttributes){
            .maxThreadsPerBlock = EMULATOR_MAX_THREADS,
            .numRegs = 64,
            .ptxVersion = 90,
            .binaryVersion = 90,
            .maxDynamicSharedSizeBytes = (int)emulator_shared_limit(function),
        };
    return emulator_leave(code);
}
/* By threads and shared memory; registers are not known here. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n_blocks, const void *function,
                                                          int block_size, size_t shared_bytes)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (block_size < 1 || block_size > EMULATOR_MAX_THREADS ||
                                shared_bytes > emulator_shared_limit(function)))
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess) {
        size_t by_shared = properties.sharedMemPerMultiprocessor / (shared_bytes + 1024);
        size_t by_threads = 2048 / (size_t)block_size;
        size_t n = by_shared < by_threads ? by_shared : by_threads;
        *n_blocks = (int)(n < 32 ? n : 32);
    }
    return emulator_leave(code);
}
