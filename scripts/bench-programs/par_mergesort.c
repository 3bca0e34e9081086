// Merge sort: each thread sorts its part, then pairs of parts are merged, with fewer threads at each level.
#include "par.h"
static uint64_t *data, *scratch;
static void merge(uint64_t *x, uint64_t *out, long left, long middle, long right) {
    long i = left, j = middle;
    for (long k = left; k < right; k++) out[k] = i < middle && (j >= right || x[i] <= x[j]) ? x[i++] : x[j++];
    memcpy(x + left, out + left, (size_t)(right - left) * sizeof *x);
}
static void sort(long left, long right) {
    if (right - left < 24) {
        for (long i = left + 1; i < right; i++) {
            uint64_t value = data[i];
            long j = i;
            for (; j > left && data[j - 1] > value; j--) data[j] = data[j - 1];
            data[j] = value;
        }
        return;
    }
    long middle = left + (right - left) / 2;
    sort(left, middle);
    sort(middle, right);
    merge(data, scratch, left, middle, right);
}
static void *body(void *arg) {
    int me = (int)(long)arg;
    long first, last, unused;
    part(size, me, &first, &last);
    sort(first, last);
    for (int step = 1; step < threads; step *= 2) {
        wait_for_all();
        if (me % (2 * step) == 0 && me + step < threads) {
            part(size, me + step, &last, &unused);
            long middle = last, end_thread = me + 2 * step < threads ? me + 2 * step : threads;
            merge(data, scratch, first, middle, size * end_thread / threads);
        }
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 9000000);
    data = malloc(sizeof *data * (size_t)size);
    scratch = malloc(sizeof *scratch * (size_t)size);
    uint64_t state = 3;
    for (long i = 0; i < size; i++) data[i] = next_random(&state) >> 20;
    run_all(body);
    uint64_t sum = 0;
    for (long i = 0; i < size; i++) {
        if (i && data[i] < data[i - 1]) return 1;
        sum = sum * 31 + data[i];
    }
    printf("%016lx\n", sum);
    return 0;
}
