#define _GNU_SOURCE
#include "control.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct { char *key, *value; } Line;
typedef struct { const char *call; u64 count; } Count;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Line *lines;
static size_t line_count;
static char *text;
static struct stat seen;
static char seen_path[4096];
static u64 checked_ns;
static Count counts[128];
static int initialized;
static struct nvmlDevice_st devices[MAX_GPUS][MAX_SLOTS + 1];

static u64 now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

static int by_key(const void *a, const void *b) { return strcmp(((const Line *)a)->key, ((const Line *)b)->key); }

static void parse(void) {
    line_count = 0;
    free(lines);
    size_t room = 1;
    for (char *p = text; *p; p++) room += *p == '\n';
    lines = calloc(room + 1, sizeof *lines);
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *equals = strchr(line, '=');
        if (*line == '#' || !equals) continue;
        *equals = 0;
        lines[line_count].key = line;
        lines[line_count++].value = equals + 1;
    }
    qsort(lines, line_count, sizeof *lines, by_key);
}

/* Read the file again if it changed. Looks at most once a millisecond; the caller holds the lock. */
static void refresh(void) {
    u64 now = now_ns();
    const char *path = getenv("LLMOS_NVML_CONTROL");
    if (!path) path = "";
    if (now - checked_ns < 1000000u && strcmp(path, seen_path) == 0) return;
    checked_ns = now;
    struct stat s;
    if (stat(path, &s) != 0) return;
    if (s.st_ino == seen.st_ino && s.st_size == seen.st_size && s.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
        s.st_mtim.tv_nsec == seen.st_mtim.tv_nsec && strcmp(path, seen_path) == 0)
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    free(text);
    text = calloc(1, (size_t)s.st_size + 2);
    size_t got = fread(text, 1, (size_t)s.st_size + 1, file);
    text[got] = 0;
    fclose(file);
    seen = s;
    snprintf(seen_path, sizeof seen_path, "%s", path);
    parse();
}

static int lookup(char *out, const char *key) {
    Line wanted = {(char *)key, NULL};
    pthread_mutex_lock(&lock);
    refresh();
    Line *line = line_count ? bsearch(&wanted, lines, line_count, sizeof *lines, by_key) : NULL;
    if (line) snprintf(out, TEXT, "%s", line->value);
    pthread_mutex_unlock(&lock);
    return line != NULL;
}

int control_text(char *out, const char *format, ...) {
    char key[2 * TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(key, sizeof key, format, args);
    va_end(args);
    return lookup(out, key);
}

nvmlReturn_t control_number(u64 *out, const char *format, ...) {
    char key[2 * TEXT], value[TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(key, sizeof key, format, args);
    va_end(args);
    if (!lookup(value, key)) return NOT_SUPPORTED;
    if (*value == '!') return (nvmlReturn_t)strtoul(value + 1, NULL, 10);
    *out = *value == '-' ? (u64)strtoll(value, NULL, 10) : strtoull(value, NULL, 10);
    return OK;
}

nvmlDevice_t device_at(int gpu, int slot) {
    struct nvmlDevice_st *device = &devices[gpu][slot + 1];
    device->gpu = gpu;
    device->slot = slot;
    return device;
}

nvmlReturn_t device_key(nvmlDevice_t device, char *key, char *uuid) {
    struct nvmlDevice_st *first = &devices[0][0], *last = &devices[MAX_GPUS - 1][MAX_SLOTS];
    if (!initialized) return UNINITIALIZED;
    if (device < first || device > last) return INVALID_ARGUMENT;
    if (device->slot < 0)
        snprintf(key, TEXT, "gpu.%d", device->gpu);
    else
        snprintf(key, TEXT, "gpu.%d.mig.%d", device->gpu, device->slot);
    return control_text(uuid, "%s.uuid", key) ? OK : INVALID_ARGUMENT;
}

static void count_call(const char *call) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (!counts[i].call) counts[i].call = call;
        if (strcmp(counts[i].call, call) == 0) {
            counts[i].count++;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* How often a call was made since the library was loaded; for tests in the same process. */
u64 nvmlDoubleCalls(const char *call) {
    u64 count = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < sizeof counts / sizeof *counts && counts[i].call; i++)
        if (strcmp(counts[i].call, call) == 0) count = counts[i].count;
    pthread_mutex_unlock(&lock);
    return count;
}

static void write_log(const char *call, const char *uuid) {
    const char *path = getenv("LLMOS_NVML_LOG");
    if (!path) return;
    FILE *file = fopen(path, "a");
    if (!file) return;
    fprintf(file, "%llu %s %s\n", now_ns() / 1000000u, call, *uuid ? uuid : "-");
    fclose(file);
}

/* The most special line wins: this call on this device, all calls on this device, this call anywhere. */
static int injected(char *out, const char *what, const char *call, const char *uuid) {
    if (*uuid && (control_text(out, "%s.%s@%s", what, call, uuid) || control_text(out, "%s.*@%s", what, uuid))) return 1;
    return control_text(out, "%s.%s", what, call);
}

void set_initialized(int on) { initialized = on; }

nvmlReturn_t enter(const char *call, const char *uuid) {
    char value[TEXT];
    struct timespec pause = {0, 5000000};
    count_call(call);
    write_log(call, uuid);
    while (injected(value, "hang", call, uuid)) nanosleep(&pause, NULL);
    if (injected(value, "delay", call, uuid)) usleep((useconds_t)(1000 * strtoul(value, NULL, 10)));
    if (injected(value, "error", call, uuid)) return (nvmlReturn_t)strtoul(value, NULL, 10);
    if (!initialized && strcmp(call, "nvmlInitWithFlags") != 0) return UNINITIALIZED;
    return OK;
}

int control_watch(void) {
    char folder[4096];
    const char *path = getenv("LLMOS_NVML_CONTROL");
    snprintf(folder, sizeof folder, "%s", path ? path : ".");
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd >= 0) inotify_add_watch(fd, slash ? folder : ".", IN_MOVED_TO | IN_CLOSE_WRITE | IN_DELETE);
    return fd;
}

void control_wait(int watch, int milliseconds) {
    char changes[4096];
    struct pollfd wait = {watch, POLLIN, 0};
    poll(&wait, 1, milliseconds);
    while (watch >= 0 && read(watch, changes, sizeof changes) > 0) continue;
    usleep(1500); /* let the once-a-millisecond look see the change */
}
