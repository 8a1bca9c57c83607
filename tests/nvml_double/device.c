/* Node, identity, MIG and what is read every second. */
#include "control.h"

#include <stdio.h>
#include <string.h>

static nvmlReturn_t copy(char *out, unsigned int room, const char *value) {
    if (strlen(value) + 1 > room) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

static nvmlReturn_t system_text(const char *call, const char *key, char *out, unsigned int room) {
    char value[TEXT];
    nvmlReturn_t result = enter(call, "");
    if (result != OK) return result;
    if (!control_text(value, "%s", key)) return NOT_SUPPORTED;
    return copy(out, room, value);
}

/* One number of a device under `<key>.<name>`. */
static nvmlReturn_t number(const char *call, nvmlDevice_t device, const char *name, u64 *out) {
    char key[TEXT], uuid[TEXT];
    nvmlReturn_t result = device_key(device, key, uuid);
    if (result == OK) result = enter(call, uuid);
    return result == OK ? control_number(out, "%s.%s", key, name) : result;
}

static nvmlReturn_t small(const char *call, nvmlDevice_t device, const char *name, unsigned int *out) {
    u64 value = 0;
    nvmlReturn_t result = number(call, device, name, &value);
    if (result == OK) *out = (unsigned int)value;
    return result;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    u64 loaded = 1;
    (void)flags;
    nvmlReturn_t result = enter(__func__, "");
    if (result != OK) return result;
    control_number(&loaded, "system.loaded");
    if (!loaded) return DRIVER_NOT_LOADED;
    set_initialized(1);
    return OK;
}

nvmlReturn_t nvmlShutdown(void) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) set_initialized(0);
    return result;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    static __thread char text[32];
    snprintf(text, sizeof text, "error %u", code);
    return text;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int room) {
    return system_text(__func__, "system.driver", out, room);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned int room) {
    return system_text(__func__, "system.nvml", out, room);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *out) {
    u64 value = 0;
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) result = control_number(&value, "system.cuda");
    if (result == OK) *out = (int)value;
    return result;
}

static unsigned int gpu_count(void) {
    char uuid[TEXT];
    unsigned int count = 0;
    while (count < MAX_GPUS && control_text(uuid, "gpu.%u.uuid", count)) count++;
    return count;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *out) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) *out = gpu_count();
    return result;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *out) {
    char uuid[TEXT] = "";
    if (index >= gpu_count()) return enter(__func__, "") == UNINITIALIZED ? UNINITIALIZED : INVALID_ARGUMENT;
    control_text(uuid, "gpu.%u.uuid", index);
    nvmlReturn_t result = enter(__func__, uuid);
    if (result == OK) *out = device_at((int)index, -1);
    return result;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned int room) {
    DEVICE(device);
    return copy(out, room, uuid);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned int room) {
    char value[TEXT];
    DEVICE(device);
    return control_text(value, "%s.name", key) ? copy(out, room, value) : NOT_SUPPORTED;
}

static nvmlReturn_t fill_pci(nvmlPciInfo_t *out, const char *address) {
    memset(out, 0, sizeof *out);
    if (sscanf(address, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3) return NOT_SUPPORTED;
    snprintf(out->busId, sizeof out->busId, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    snprintf(out->busIdLegacy, sizeof out->busIdLegacy, "%04X:%02X:%02X.0", out->domain & 0xFFFF, out->bus & 0xFF,
             out->device & 0xFF);
    return OK;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *out) {
    char value[TEXT];
    DEVICE(device);
    return control_text(value, "%s.bus", key) ? fill_pci(out, value) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *out) {
    char value[TEXT];
    DEVICE(device);
    return control_text(value, "%s.nvlink.%u.remote", key, link) ? fill_pci(out, value) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    char value[TEXT];
    DEVICE(device);
    if (!control_text(value, "%s.capability", key)) return NOT_SUPPORTED;
    return sscanf(value, "%d.%d", major, minor) == 2 ? OK : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other, unsigned int *out) {
    u64 value = 0;
    DEVICE(device);
    result = control_number(&value, "%s.ancestor.%d", key, other->gpu);
    if (result == OK) *out = (unsigned int)value;
    return result;
}

/* -- MIG */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    nvmlReturn_t result = small(__func__, device, "mig.mode", current);
    if (result == OK) *pending = *current;
    return result;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *out) {
    u64 slots = 0;
    DEVICE(device);
    if (control_number(&slots, "%s.mig.slots", key) == NOT_SUPPORTED) slots = 0; /* a card without MIG says 0 */
    *out = (unsigned int)slots;
    return OK;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int slot, nvmlDevice_t *out) {
    char value[TEXT];
    DEVICE(device);
    if (slot >= MAX_SLOTS || !control_text(value, "%s.mig.%u.uuid", key, slot)) return NOT_FOUND;
    *out = device_at(device->gpu, (int)slot);
    return OK;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, "gi", out);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, "ci", out);
}

/* -- every second */

static nvmlReturn_t memory(const char *key, u64 *total, u64 *used, u64 *reserved) {
    nvmlReturn_t result = control_number(total, "%s.memory.total", key);
    if (result == OK) result = control_number(used, "%s.memory.used", key);
    if (result == OK && control_number(reserved, "%s.memory.reserved", key) == NOT_SUPPORTED) *reserved = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out) {
    u64 total = 0, used = 0, reserved = 0;
    DEVICE(device);
    result = memory(key, &total, &used, &reserved);
    if (result == OK) *out = (nvmlMemory_t){total, total - used - reserved, used + reserved};
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out) {
    u64 total = 0, used = 0, reserved = 0;
    DEVICE(device);
    if (out->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    result = memory(key, &total, &used, &reserved);
    if (result == OK) *out = (nvmlMemory_v2_t){MEMORY_V2, total, reserved, total - used - reserved, used};
    return result;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *out) {
    u64 gpu = 0, used = 0, mig = 0;
    DEVICE(device);
    if (control_number(&mig, "%s.mig.mode", key) == OK && mig) return NOT_SUPPORTED; /* as on a real MIG GPU */
    result = control_number(&gpu, "%s.util.gpu", key);
    if (result == OK) result = control_number(&used, "%s.util.memory", key);
    if (result == OK) *out = (nvmlUtilization_t){(unsigned int)gpu, (unsigned int)used};
    return result;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *out) {
    u64 value = 0;
    DEVICE(device);
    if (out->version != TEMPERATURE_V1) return ARGUMENT_VERSION_MISMATCH;
    result = control_number(&value, "%s.temperature", key);
    if (result == OK) out->temperature = (int)value;
    return result;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *out) {
    (void)sensor;
    return small(__func__, device, "temperature", out);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, "power", out);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, u64 *out) {
    return number(__func__, device, "reasons", out);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, u64 *out) {
    return number(__func__, device, "reasons", out);
}
