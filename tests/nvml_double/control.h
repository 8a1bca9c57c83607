/* The control file: `key=value` lines that a test rewrites while the library is in use. See README.md. */
#ifndef LLMOS_NVML_CONTROL_H
#define LLMOS_NVML_CONTROL_H

#include "abi.h"

#define TEXT 256
#define MAX_GPUS 64
#define MAX_SLOTS 16

struct nvmlDevice_st { int gpu, slot; }; /* slot -1: the whole GPU */

/* Copy the value of a key; 0 if there is none. */
int control_text(char *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Read a number: OK, NOT_SUPPORTED if there is no such key, or the code of a value written as `!15`. */
nvmlReturn_t control_number(u64 *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Key prefix and UUID of a handle ("gpu.0", "gpu.0.mig.2"); INVALID_ARGUMENT if there is no such device now. */
nvmlReturn_t device_key(nvmlDevice_t device, char *key, char *uuid);
nvmlDevice_t device_at(int gpu, int slot);

/* Start of every call: counts it, hangs, delays or fails as the control file says. */
nvmlReturn_t enter(const char *call, const char *uuid);
void set_initialized(int on);

/* Block until the control file changes or `milliseconds` pass. Open the watch before looking, close() it after. */
int control_watch(void);
void control_wait(int watch, int milliseconds);

/* A call about a device: resolve the handle, then enter. */
#define DEVICE(device)                                                                                                  \
    char key[TEXT], uuid[TEXT];                                                                                         \
    nvmlReturn_t result = device_key(device, key, uuid);                                                                \
    if (result == OK) result = enter(__func__, uuid);                                                                   \
    if (result != OK) return result

#endif
