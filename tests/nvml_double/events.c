/* Events: `event.<n>=<uuid> <type> <data> [gpu instance]`, each delivered once, in order of n, n from 1. */
#define _GNU_SOURCE
#include "control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REGISTERED 64

struct nvmlEventSet_st {
    nvmlDevice_t devices[REGISTERED];
    u64 masks[REGISTERED];
    unsigned int count;
};

static unsigned int delivered; /* the last event anybody got; one waiting thread, as in the agent */

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) *out = calloc(1, sizeof **out);
    return result;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) free(set);
    return result;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, u64 *out) {
    DEVICE(device);
    return control_number(out, "%s.events", key);
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, u64 mask, nvmlEventSet_t set) {
    u64 supported = 0;
    DEVICE(device);
    if (control_number(&supported, "%s.events", key) != OK || (mask & ~supported)) return NOT_SUPPORTED;
    if (set->count == REGISTERED) return INSUFFICIENT_SIZE;
    set->devices[set->count] = device;
    set->masks[set->count++] = mask;
    return OK;
}

/* Find the registration an event belongs to: by uuid and type; NULL drops the event, as the driver does. */
static nvmlDevice_t receiver(nvmlEventSet_t set, const char *wanted, u64 type) {
    char key[TEXT], uuid[TEXT];
    for (unsigned int i = 0; i < set->count; i++)
        if (device_key(set->devices[i], key, uuid) == OK && strcmp(uuid, wanted) == 0 && (set->masks[i] & type))
            return set->devices[i];
    return NULL;
}

static int next_event(nvmlEventSet_t set, nvmlEventData_t *out) {
    char value[TEXT], uuid[TEXT];
    while (control_text(value, "event.%u", delivered + 1)) {
        u64 type = 0, data = 0;
        unsigned int instance = WHOLE_GPU;
        delivered++;
        if (sscanf(value, "%255s %llu %llu %u", uuid, &type, &data, &instance) < 3) continue;
        nvmlDevice_t device = receiver(set, uuid, type);
        if (!device) continue;
        *out = (nvmlEventData_t){device, type, data, instance, WHOLE_GPU};
        return 1;
    }
    return 0;
}

/* Tests in one process start from the first event again. */
void nvmlDoubleRewind(void) { delivered = 0; }

static long since(const struct timespec *start) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - start->tv_sec) * 1000 + (now.tv_nsec - start->tv_nsec) / 1000000;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *out, unsigned int milliseconds) {
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int watch = milliseconds ? control_watch() : -1;
    nvmlReturn_t result;
    for (;;) {
        result = enter(__func__, "");
        if (result != OK || next_event(set, out)) break;
        long left = (long)milliseconds - since(&start);
        result = TIMEOUT;
        if (left <= 0) break;
        control_wait(watch, (int)left);
    }
    if (watch >= 0) close(watch);
    return result;
}
