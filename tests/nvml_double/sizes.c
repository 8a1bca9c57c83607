/* Sizes and offsets of the structures, for the comparison with pynvml. */
#include "abi.h"

#include <string.h>

#define SIZE(type) {#type, "", sizeof(type)}
#define AT(type, member) {#type, #member, offsetof(type, member)}

static const struct { const char *type, *member; size_t value; } table[] = {
    SIZE(nvmlMemory_t), AT(nvmlMemory_t, used),
    SIZE(nvmlMemory_v2_t), AT(nvmlMemory_v2_t, reserved), AT(nvmlMemory_v2_t, used),
    SIZE(nvmlUtilization_t), AT(nvmlUtilization_t, memory),
    SIZE(nvmlTemperature_v1_t), AT(nvmlTemperature_v1_t, temperature),
    SIZE(nvmlPciInfo_t), AT(nvmlPciInfo_t, domain), AT(nvmlPciInfo_t, busId),
    SIZE(nvmlProcessInfo_t), AT(nvmlProcessInfo_t, usedGpuMemory), AT(nvmlProcessInfo_t, gpuInstanceId),
    SIZE(nvmlEventData_t), AT(nvmlEventData_t, eventType), AT(nvmlEventData_t, gpuInstanceId),
    SIZE(nvmlFieldValue_t), AT(nvmlFieldValue_t, nvmlReturn), AT(nvmlFieldValue_t, value),
    SIZE(nvmlEccSramErrorStatus_v1_t), AT(nvmlEccSramErrorStatus_v1_t, bThresholdExceeded),
    SIZE(nvmlGpmSupport_t), AT(nvmlGpmSupport_t, isSupportedDevice),
    SIZE(nvmlGpmMetric_t), AT(nvmlGpmMetric_t, value),
    SIZE(nvmlGpmMetricsGet_t), AT(nvmlGpmMetricsGet_t, metrics),
};

/* Offset of a member, size of the type for member "", -1 for what is not in the table. */
long nvmlDoubleLayout(const char *type, const char *member) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].type, type) == 0 && strcmp(table[i].member, member) == 0) return (long)table[i].value;
    return -1;
}
