/* A CUDA driver that only knows whether it was started: enough for embedders/gpu/visibility.py. */
static int started;

int cuInit(unsigned flags) {
    (void)flags;
    started = 1;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return started ? 0 : 3; /* CUDA_ERROR_NOT_INITIALIZED */
}
