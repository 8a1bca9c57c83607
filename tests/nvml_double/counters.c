/* What is read every few seconds: energy, clocks, memory errors, links, PCIe, field values, GPM, processes. */
#include "control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nvmlReturn_t number(const char *call, nvmlDevice_t device, u64 *out, const char *name) {
    char key[TEXT], uuid[TEXT];
    nvmlReturn_t result = device_key(device, key, uuid);
    if (result == OK) result = enter(call, uuid);
    return result == OK ? control_number(out, "%s.%s", key, name) : result;
}

static nvmlReturn_t small(const char *call, nvmlDevice_t device, unsigned int *out, const char *name) {
    u64 value = 0;
    nvmlReturn_t result = number(call, device, &value, name);
    if (result == OK) *out = (unsigned int)value;
    return result;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, u64 *out) {
    return number(__func__, device, out, "energy");
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, out, "powerlimit");
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int clock, unsigned int *out) {
    static const char *names[] = {"clock.graphics", "clock.sm", "clock.memory", "clock.video"};
    if (clock > 3) return INVALID_ARGUMENT;
    return small(__func__, device, out, names[clock]);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int error, unsigned int counter, u64 *out) {
    char name[TEXT];
    snprintf(name, sizeof name, "ecc.%s.%s", counter ? "aggregate" : "volatile", error ? "uncorrected" : "corrected");
    return number(__func__, device, out, name);
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_v1_t *out) {
    u64 value = 0;
    DEVICE(device);
    if (out->version != SRAM_V1) return ARGUMENT_VERSION_MISMATCH;
    result = control_number(&value, "%s.sram.exceeded", key);
    if (result == OK) out->bThresholdExceeded = (unsigned int)value;
    return result;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *correctable, unsigned int *uncorrectable,
                                       unsigned int *pending, unsigned int *failed) {
    char value[TEXT];
    DEVICE(device);
    if (!control_text(value, "%s.rows", key)) return NOT_SUPPORTED;
    return sscanf(value, "%u %u %u %u", correctable, uncorrectable, pending, failed) == 4 ? OK : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, unsigned int cause, unsigned int *count, u64 *pages) {
    u64 total = 0;
    DEVICE(device);
    result = control_number(&total, "%s.retired.%s", key, cause ? "double" : "single");
    if (result != OK) return result;
    unsigned int room = *count;
    *count = (unsigned int)total;
    if (total && (!pages || room < total)) return INSUFFICIENT_SIZE;
    for (u64 i = 0; i < total; i++) pages[i] = 0x1000 * (i + 1);
    return OK;
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, out, "retired.pending");
}

/* -- links and PCIe */

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, unsigned int *out) {
    char name[TEXT];
    snprintf(name, sizeof name, "nvlink.%u.state", link);
    return small(__func__, device, out, name);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, unsigned int *out) {
    char name[TEXT];
    snprintf(name, sizeof name, "nvlink.%u.type", link);
    return small(__func__, device, out, name);
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, unsigned int counter, u64 *out) {
    char name[TEXT];
    snprintf(name, sizeof name, "nvlink.%u.errors.%u", link, counter);
    return number(__func__, device, out, name);
}

nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, out, "pcie.replays");
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, out, "pcie.generation");
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *out) {
    return small(__func__, device, out, "pcie.width");
}

/* `<type>:<number>` with type f64 u32 ul u64 i64 i32 u16; a bare number is u64. */
static void fill_field(nvmlFieldValue_t *field, const char *text) {
    static const char *types[] = {"f64:", "u32:", "ul:", "u64:", "i64:", "i32:", "u16:"};
    unsigned int type = 3;
    for (unsigned int i = 0; i < 7; i++)
        if (strncmp(text, types[i], strlen(types[i])) == 0) {
            type = i;
            text += strlen(types[i]);
        }
    field->valueType = type;
    memset(&field->value, 0, sizeof field->value);
    switch (type) {
        case 0: field->value.dVal = strtod(text, NULL); break;
        case 1: field->value.uiVal = (unsigned int)strtoul(text, NULL, 10); break;
        case 2: field->value.ulVal = strtoul(text, NULL, 10); break;
        case 4: field->value.sllVal = strtoll(text, NULL, 10); break;
        case 5: field->value.siVal = (int)strtol(text, NULL, 10); break;
        case 6: field->value.usVal = (unsigned short)strtoul(text, NULL, 10); break;
        default: field->value.ullVal = strtoull(text, NULL, 10);
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    char value[TEXT];
    DEVICE(device);
    for (int i = 0; i < count; i++) {
        fields[i].nvmlReturn = OK;
        if (!control_text(value, "%s.field.%u", key, fields[i].fieldId))
            fields[i].nvmlReturn = NOT_SUPPORTED;
        else if (*value == '!')
            fields[i].nvmlReturn = (nvmlReturn_t)strtoul(value + 1, NULL, 10);
        else
            fill_field(&fields[i], value);
    }
    return OK;
}

/* -- GPM */

struct nvmlGpmSample_st { nvmlDevice_t device; };

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *out) {
    u64 value = 0;
    DEVICE(device);
    if (control_number(&value, "%s.gpm.support", key) != OK) value = 0;
    out->isSupportedDevice = (unsigned int)value;
    return OK;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *out) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) *out = calloc(1, sizeof **out);
    return result;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    nvmlReturn_t result = enter(__func__, "");
    if (result == OK) free(sample);
    return result;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    u64 supported = 0;
    DEVICE(device);
    if (device->slot >= 0) return INVALID_ARGUMENT;
    if (control_number(&supported, "%s.gpm.support", key) != OK || !supported) return NOT_SUPPORTED;
    sample->device = device;
    return OK;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int instance, nvmlGpmSample_t sample) {
    u64 supported = 0, found = 0;
    DEVICE(device);
    if (device->slot >= 0) return INVALID_ARGUMENT; /* wants the GPU's handle, not the instance's */
    if (control_number(&supported, "%s.gpm.support", key) != OK || !supported) return NOT_SUPPORTED;
    for (int slot = 0; slot < MAX_SLOTS; slot++)
        if (control_number(&found, "%s.mig.%d.gi", key, slot) == OK && found == instance) {
            sample->device = device_at(device->gpu, slot);
            return OK;
        }
    return INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *request) {
    char key[TEXT], uuid[TEXT], value[TEXT];
    if (request->version != 1) return ARGUMENT_VERSION_MISMATCH;
    if (!request->sample1->device || request->sample1->device != request->sample2->device) return INVALID_ARGUMENT;
    nvmlReturn_t result = device_key(request->sample2->device, key, uuid);
    if (result == OK) result = enter(__func__, uuid);
    if (result != OK) return result;
    for (unsigned int i = 0; i < request->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &request->metrics[i];
        metric->nvmlReturn = NOT_SUPPORTED;
        if (!control_text(value, "%s.gpm.%u", key, metric->metricId)) continue;
        metric->nvmlReturn = *value == '!' ? (nvmlReturn_t)strtoul(value + 1, NULL, 10) : OK;
        metric->value = strtod(value, NULL);
    }
    return OK;
}

/* -- processes: `<key>.<list>.<n>=pid bytes` with `-` for bytes the driver does not tell */

static nvmlReturn_t list(const char *call, nvmlDevice_t device, const char *name, unsigned int *count,
                         nvmlProcessInfo_t *out) {
    char key[TEXT], uuid[TEXT], value[TEXT], bytes[TEXT];
    unsigned int found = 0, room = *count, pid;
    nvmlReturn_t result = device_key(device, key, uuid);
    if (result == OK) result = enter(call, uuid);
    if (result != OK) return result;
    while (control_text(value, "%s.%s.%u", key, name, found)) {
        if (*value == '!') return (nvmlReturn_t)strtoul(value + 1, NULL, 10);
        if (found < room && out && sscanf(value, "%u %255s", &pid, bytes) == 2)
            out[found] = (nvmlProcessInfo_t){pid, *bytes == '-' ? NOT_AVAILABLE : strtoull(bytes, NULL, 10), WHOLE_GPU,
                                             WHOLE_GPU};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out) {
    return list(__func__, device, "process", count, out);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                        nvmlProcessInfo_t *out) {
    return list(__func__, device, "mps", count, out);
}
