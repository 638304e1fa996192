/*
 * A stand-in for libnvidia-ml.so.1 with 8 GPUs, built by the tests and loaded
 * through the real cgo path. Every figure and every fault is a file in the folder
 * $FAKE_NVML (looked at on each call), so a test switches them while it runs:
 *
 *   init, count, wait     a return code for nvmlInit_v2, DeviceGetCount, EventSetWait
 *   lost.N                GPU N is lost: all questions about it say so
 *   hang.N                questions about memory of GPU N do not return while it is there
 *   used.N                bytes in use on GPU N
 *   procs.N               lines "pid bytes" for GPU N
 *   mig.N                 the number of MIG slices of GPU N
 *   xid                   "gpu xid instance": one event, taken by the next wait
 *
 * -DNO_OPTIONAL leaves out what old drivers lack, -DNOT_NVML leaves out the rest.
 * -DSTEP_MS=1000 looks for events less often: the real wait costs nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef STEP_MS
#define STEP_MS 10
#endif

typedef struct { int gpu, slice; } dev; /* slice -1: the GPU itself */
static dev table[8][8];                  /* [gpu][0] = GPU, [gpu][1..7] = slices */

static const char *file(const char *name, int n)
{
    static __thread char path[512];
    const char *dir = getenv("FAKE_NVML");
    if (n < 0) snprintf(path, sizeof path, "%s/%s", dir ? dir : "/nonexistent", name);
    else snprintf(path, sizeof path, "%s/%s.%d", dir ? dir : "/nonexistent", name, n);
    return path;
}

static long long number(const char *name, int n, long long otherwise)
{
    FILE *f = fopen(file(name, n), "r");
    long long v = otherwise;
    if (f) { if (fscanf(f, "%lld", &v) != 1) v = otherwise; fclose(f); }
    return v;
}

static int there(const char *name, int n) { return access(file(name, n), F_OK) == 0; }

#ifdef NOT_NVML
int nothing(void) { return number("none", -1, 0) + there("none", -1) + table[0][0].gpu; }
#else

int nvmlInit_v2(void)
{
    for (int g = 0; g < 8; g++)
        for (int s = 0; s < 8; s++) table[g][s] = (dev){g, s - 1};
    return number("init", -1, 0);
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { return r == 15 ? "GPU is lost" : r == 9 ? "Driver Not Loaded" : "some error"; }

int nvmlDeviceGetCount_v2(unsigned *n)
{
    *n = number("gpus", -1, 8);
    return number("count", -1, 0);
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, dev **d)
{
    if (i >= 8) return 2;
    *d = &table[i][0];
    return there("lost", i) ? 15 : 0;
}
int nvmlDeviceGetUUID(dev *d, char *s, unsigned n)
{
    if (there("lost", d->gpu)) return 15;
    if (d->slice < 0) snprintf(s, n, "GPU-00000000-0000-0000-0000-00000000000%d", d->gpu);
    else snprintf(s, n, "MIG-00000000-0000-0000-000%d-00000000000%d", d->slice, d->gpu);
    return 0;
}
int nvmlDeviceGetName(dev *d, char *s, unsigned n)
{
    if (d->slice < 0) snprintf(s, n, "NVIDIA Fake 80GB");
    else snprintf(s, n, "NVIDIA Fake MIG 1g.10gb");
    return 0;
}
int nvmlDeviceGetMemoryInfo(dev *d, unsigned long long m[3]) /* total, free, used */
{
    while (there("hang", d->gpu)) usleep(10000);
    if (there("lost", d->gpu)) return 15;
    m[0] = d->slice < 0 ? 80ULL << 30 : 10ULL << 30;
    m[2] = d->slice < 0 ? number("used", d->gpu, 0) : 0;
    m[1] = m[0] - m[2];
    return 0;
}

#ifndef NO_OPTIONAL
struct proc { unsigned pid; unsigned long long bytes; unsigned gi, ci; };
int nvmlDeviceGetComputeRunningProcesses_v3(dev *d, unsigned *n, struct proc *out)
{
    if (there("lost", d->gpu)) return 15;
    FILE *f = fopen(file("procs", d->gpu), "r");
    unsigned room = *n, have = 0, pid;
    long long bytes;
    while (f && fscanf(f, "%u %lld", &pid, &bytes) == 2) {
        if (have < room) out[have] = (struct proc){pid, (unsigned long long)bytes, 0xFFFFFFFF, 0xFFFFFFFF};
        have++;
    }
    if (f) fclose(f);
    *n = have;
    return have > room ? 7 : 0;
}
int nvmlDeviceGetMigMode(dev *d, unsigned *current, unsigned *pending)
{
    *current = *pending = there("mig", d->gpu);
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(dev *d, unsigned *n) { (void)d; *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(dev *d, unsigned i, dev **out)
{
    /* holes, as real drivers have: slices sit at the odd indexes */
    if (i % 2 == 0 || (long long)(i / 2) >= number("mig", d->gpu, 0)) return 6;
    *out = &table[d->gpu][1 + i];
    return 0;
}
int nvmlDeviceGetGpuInstanceId(dev *d, unsigned *id) { *id = d->slice; return 0; }

int nvmlEventSetCreate(void **set) { *set = malloc(1); return 0; }
int nvmlEventSetFree(void *set) { free(set); return 0; }
int nvmlDeviceRegisterEvents(dev *d, unsigned long long types, void *set)
{
    (void)types; (void)set;
    return there("lost", d->gpu) ? 15 : 0;
}
struct event { dev *d; unsigned long long type, data; unsigned gi, ci; };
int nvmlEventSetWait_v2(void *set, struct event *e, unsigned ms)
{
    (void)set;
    for (unsigned t = 0; t <= ms; t += STEP_MS) {
        int g, r = number("wait", -1, 0);
        unsigned long long xid, gi;
        if (r) {
            FILE *c = fopen(file("waited", -1), "a"); /* one byte per failed wait */
            if (c) { fputc('x', c); fclose(c); }
            return r;
        }
        FILE *f = fopen(file("xid", -1), "r");
        if (f) {
            int ok = fscanf(f, "%d %llu %llu", &g, &xid, &gi) == 3;
            fclose(f);
            unlink(file("xid", -1));
            if (ok) {
                *e = (struct event){&table[g][0], 8, xid, (unsigned)gi, 0xFFFFFFFF};
                return 0;
            }
        }
        usleep(STEP_MS * 1000);
    }
    return 10;
}
#endif
#endif
