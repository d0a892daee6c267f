/* A library with NVML's symbols whose machine is a text file, read anew at each call: the file that NVML_STAND_IN names.
 *
 *     init RESULT                                 what nvmlInit returns; 0 without such a line
 *     gpu UUID RESULT MILLIJOULES                 a GPU and what its energy counter returns; in the order of indices
 *     mig UUID PARENT COMPUTE_SLICES GPU_SLICES   a MIG device of the GPU PARENT, which may have 7 of them
 *
 * Results are nvmlReturn_t: 0 works, 3 is not supported, 9 no driver, 15 a lost GPU, which stays lost until the library
 * was shut down. A handle is a copy of its UUID.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_FOUND = 6, GPU_IS_LOST = 15 };
enum { HANDLES_MAX = 64, UUID_SIZE = 96, MIG_DEVICES_MAX = 7 };

typedef char Uuid[UUID_SIZE];

typedef struct {
    Uuid uuid, parent;
    int is_mig, result;
    unsigned long long millijoules;
    unsigned compute_slices, gpu_slices;
} Device;

/* nvmlDeviceAttributes_t */
typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mb;
} Attributes;

static int initialized;
static Uuid handles[HANDLES_MAX];
static int lost[HANDLES_MAX];

/* The device with this UUID, or where it is NULL the GPU with this index. *init is nvmlInit's result. */
static int find(const char *uuid, int index, Device *found, int *init) {
    char line[512];
    int gpus = 0, is_found = 0;
    const char *path = getenv("NVML_STAND_IN");
    FILE *file = path ? fopen(path, "r") : NULL;
    *init = file ? SUCCESS : 9;
    while (file && fgets(line, sizeof line, file)) {
        Device device = {0};
        if (sscanf(line, "init %d", init) == 1)
            continue;
        if (sscanf(line, "gpu %95s %d %llu", device.uuid, &device.result, &device.millijoules) == 3) {
            if (uuid ? strcmp(uuid, device.uuid) == 0 : index == gpus)
                *found = device, is_found = 1;
            gpus++;
        } else if (sscanf(line, "mig %95s %95s %u %u", device.uuid, device.parent, &device.compute_slices,
                          &device.gpu_slices) == 4) {
            device.is_mig = 1;
            if (uuid && strcmp(uuid, device.uuid) == 0)
                *found = device, is_found = 1;
        }
    }
    if (file)
        fclose(file);
    return is_found;
}

static int handle_of(const char *uuid, int index, void **handle) {
    Device device;
    int init;
    if (!initialized)
        return UNINITIALIZED;
    if (!find(uuid, index, &device, &init))
        return NOT_FOUND;
    for (int i = 0; i < HANDLES_MAX; i++) {
        if (!*handles[i])
            strcpy(handles[i], device.uuid);
        if (strcmp(handles[i], device.uuid) == 0) {
            *handle = handles[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

static int device_of(void *handle, Device *device) {
    int init;
    if (!initialized)
        return UNINITIALIZED;
    return find(handle, 0, device, &init) ? SUCCESS : NOT_FOUND;
}

int nvmlInitWithFlags(unsigned flags) {
    Device device;
    int init;
    (void)flags;
    find("", 0, &device, &init);
    initialized += init == SUCCESS;
    return init;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!initialized)
        return UNINITIALIZED;
    if (--initialized == 0) {
        memset(handles, 0, sizeof handles);
        memset(lost, 0, sizeof lost);
    }
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Device device;
    int init;
    if (!initialized)
        return UNINITIALIZED;
    for (*count = 0; find(NULL, (int)*count, &device, &init); ++*count)
        ;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { return handle_of(NULL, (int)index, handle); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { return handle_of(uuid, 0, handle); }

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS)
        snprintf(uuid, length, "%s", device.uuid);
    return result;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS)
        snprintf(name, length, "Stand-in GPU");
    return result;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS)
        result = device.is_mig ? 3 : device.result;
    int *is_lost = &lost[(Uuid *)handle - handles];
    *is_lost |= result == GPU_IS_LOST;
    if (*is_lost)
        return GPU_IS_LOST;
    if (result == SUCCESS)
        *millijoules = device.millijoules;
    return result;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is_mig) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS)
        *is_mig = (unsigned)device.is_mig;
    return result;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **parent) {
    Device device;
    int result = device_of(handle, &device);
    return result == SUCCESS ? handle_of(device.parent, 0, parent) : result;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS)
        *count = MIG_DEVICES_MAX;
    return result;
}

int nvmlDeviceGetAttributes_v2(void *handle, Attributes *attributes) {
    Device device;
    int result = device_of(handle, &device);
    if (result == SUCCESS) {
        memset(attributes, 0, sizeof *attributes);
        attributes->gpu_slices = device.gpu_slices;
        attributes->compute_slices = device.compute_slices;
    }
    return result;
}

const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case 3: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case 9: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}
