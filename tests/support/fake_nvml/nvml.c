/* A driver without a device: the part of NVML that embedders/gpu/nvml.py calls.
 *
 * Each call reads the file named by FAKE_NVML anew, so that a test can change the world meanwhile. Its lines:
 *
 *   gpu uuid=GPU-a name=Fake total=80000 used=10 procs=0 util=0 mode=0 mig=0 open=0
 *   mig uuid=MIG-a gi=1 ci=0 total=10000 used=1 procs=0     an instance of the gpu above; `mig` alone: an empty place
 *   fail nvmlDeviceGetUUID 2 15                             that call fails on the third gpu (*: on all) with code 15
 *
 * Sizes are in MiB; `open` is the code with which opening fails; `procs=0,0,1` answers the first question of a
 * connection, the second, and any later one; `slow=60` makes
 * the question of the utilisation hang for so many seconds. Without a file there is no driver. Compiled with -DOLD, the library
 * lacks the functions that came after release 450, and the utilisation.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT = 7, NOT_LOADED = 9, MOST = 64 };
#define RESERVED_MIB 600 /* what a driver keeps for itself; version 1 of the memory call counts it as used */

typedef struct { char text[400]; int gpu, place; } Device; /* place: of a MIG instance in its gpu, else -1 */
static Device world[MOST], fails[MOST];
static int devices, failures, connections, asked[MOST];

static void add(Device *list, int *count, const char *line, int gpu, int place) {
    if (*count == MOST) abort();
    snprintf(list[*count].text, sizeof list[0].text, "%s", line);
    list[*count].gpu = gpu, list[*count].place = place;
    ++*count;
}

static int load(void) {
    char line[400];
    int gpu = -1, place = -1;
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    devices = failures = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = ' ';
        if (!strncmp(line, "gpu", 3)) add(world, &devices, line, ++gpu, place = -1);
        if (!strncmp(line, "mig", 3)) add(world, &devices, line, gpu, ++place);
        if (!strncmp(line, "fail", 4)) add(fails, &failures, line, 0, 0);
    }
    fclose(file);
    return 1;
}

static const char *field(const Device *device, const char *name) {
    char key[32];
    snprintf(key, sizeof key, " %s=", name);
    const char *found = strstr(device->text, key);
    return found ? found + strlen(key) : NULL;
}

static long long number(const Device *device, const char *name) {
    const char *value = field(device, name);
    return value ? atoll(value) : 0;
}

static Device *find(int gpu, int place) {
    for (int i = 0; i < devices; i++)
        if (world[i].gpu == gpu && world[i].place == place) return &world[i];
    return NULL;
}

/* A handle is 100 * gpu + place + 2, so that none is NULL. */
static int look(const char *call, long handle, Device **device) {
    char name[64], which[16];
    int code, gpu = handle / 100;
    if (!load()) return NOT_LOADED;
    for (int i = 0; i < failures; i++)
        if (sscanf(fails[i].text, "fail %63s %15s %d", name, which, &code) == 3 && !strcmp(name, call))
            if (*which == '*' || atoi(which) == gpu) return code;
    *device = find(gpu, handle % 100 - 2);
    return *device ? OK : INVALID;
}

#define LOOK                                        \
    Device *device = NULL;                          \
    int code = look(__func__, (long)handle, &device); \
    if (code) return code

static int text(const Device *device, const char *name, char *out, unsigned size) {
    const char *value = field(device, name);
    if (!value) return NOT_SUPPORTED;
    snprintf(out, size, "%.*s", (int)strcspn(value, " "), value);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    Device *device;
    int code = look(__func__, 1, &device); /* the first gpu's handle, though there may be none */
    (void)flags;
    if (code && code != INVALID) return code;
    if (!connections++) memset(asked, 0, sizeof asked);
    return OK;
}

int nvmlShutdown(void) {
    --connections;
    return OK;
}

const char *nvmlErrorString(int code) {
    switch (code) {
        case NOT_LOADED: return "Driver Not Loaded";
        case 4: return "Insufficient Permissions";
        case 15: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        default: return "Fake error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Device *device;
    int code = look(__func__, 1, &device);
    if (code && code != INVALID) return code;
    for (*count = 0; find(*count, -1);) ++*count;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    long handle = 100 * index + 1;
    *out = (void *)handle;
    LOOK;
    return number(device, "open");
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    long handle = 1; /* a failure of this call is that of the first gpu, or of all */
    LOOK;
    for (int i = 0; i < devices; i++) {
        const char *known = field(&world[i], "uuid");
        if (!known || strncmp(known, uuid, strlen(uuid)) || known[strlen(uuid)] != ' ') continue;
        *out = (void *)(100L * world[i].gpu + world[i].place + 2);
        return OK;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    LOOK;
    return text(device, "uuid", out, size);
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    LOOK;
    return text(device, "name", out, size);
}

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    LOOK;
    memory->total = number(device, "total") << 20;
    memory->used = (number(device, "used") + RESERVED_MIB) << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetComputeMode(void *handle, unsigned *mode) {
    LOOK;
    if (device->place >= 0) return NOT_SUPPORTED;
    *mode = number(device, "mode");
    return OK;
}

#ifndef OLD
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *gpu_and_memory) {
    LOOK;
    if (!field(device, "util")) return NOT_SUPPORTED;
    sleep(number(device, "slow"));
    gpu_and_memory[0] = gpu_and_memory[1] = number(device, "util");
    return OK;
}

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *memory) {
    LOOK;
    memory->total = number(device, "total") << 20;
    memory->reserved = (unsigned long long)RESERVED_MIB << 20;
    memory->used = number(device, "used") << 20;
    memory->free = memory->total - memory->used - memory->reserved;
    return OK;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gi, ci; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *out) {
    LOOK;
    if (!field(device, "procs")) return NOT_SUPPORTED;
    int *asks = &asked[device - world];
    const char *answer = field(device, "procs");
    if (!out) ++*asks; /* the first of two calls for one question: how many are there? */
    for (int i = 1; i < *asks && answer[strcspn(answer, ", ")] == ','; i++) answer += strcspn(answer, ",") + 1;
    unsigned running = atoi(answer), room = out ? *count : 0;
    *count = running;
    if (running > room) return INSUFFICIENT;
    for (unsigned i = 0; i < running; i++) out[i] = (Process){.pid = 1};
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *later) {
    LOOK;
    if (!field(device, "mig")) return NOT_SUPPORTED;
    *now = *later = number(device, "mig");
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    LOOK;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned place, void **out) {
    LOOK;
    Device *instance = find(device->gpu, place);
    *out = (void *)((long)handle + 1 + place);
    return instance && field(instance, "uuid") ? OK : NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    LOOK;
    *id = number(device, "gi");
    return OK;
}

int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id) {
    LOOK;
    *id = number(device, "ci");
    return OK;
}
#endif
