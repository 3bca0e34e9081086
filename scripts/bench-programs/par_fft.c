// Six-step FFT of size*size points: rows, transpose by blocks, rows. Each transpose moves every page to another thread.
#include "par.h"
typedef struct { double re, im; } complex_t;
static complex_t *a, *b, *roots;
static int bits;
static void row_fft(complex_t *x) {
    for (long i = 0; i < size; i++) {
        long j = 0;
        for (int k = 0; k < bits; k++) j |= (i >> k & 1) << (bits - 1 - k);
        if (j > i) {
            complex_t t = x[i];
            x[i] = x[j];
            x[j] = t;
        }
    }
    for (long half = 1; half < size; half *= 2)
        for (long start = 0; start < size; start += 2 * half)
            for (long k = 0; k < half; k++) {
                complex_t w = roots[k * (size / 2 / half)], *p = &x[start + k], *q = p + half;
                double re = q->re * w.re - q->im * w.im, im = q->re * w.im + q->im * w.re;
                q->re = p->re - re;
                q->im = p->im - im;
                p->re += re;
                p->im += im;
            }
}
static void transpose(const complex_t *from, complex_t *to, long first, long last) {
    for (long i = first; i < last; i += 8)
        for (long j = 0; j < size; j += 8)
            for (long k = i; k < i + 8 && k < last; k++)
                for (long l = j; l < j + 8 && l < size; l++) to[k * size + l] = from[l * size + k];
}
static void *body(void *arg) {
    long first, last;
    part(size, (int)(long)arg, &first, &last);
    for (long i = first * size; i < last * size; i++) a[i] = (complex_t){(double)(i % 1013), (double)(i % 7)};
    wait_for_all();
    for (int round = 0; round < 8; round++) {
        transpose(a, b, first, last);
        for (long i = first; i < last; i++) row_fft(b + i * size);
        for (long i = first; i < last; i++)
            for (long j = 0; j < size; j++) {
                double angle = -2 * M_PI * (double)(i * j % (size * size)) / (double)(size * size), c = cos(angle), s = sin(angle);
                complex_t *x = &b[i * size + j];
                *x = (complex_t){x->re * c - x->im * s, x->re * s + x->im * c};
            }
        wait_for_all();
        transpose(b, a, first, last);
        for (long i = first; i < last; i++) row_fft(a + i * size);
        wait_for_all();
        for (long i = first * size; i < last * size; i++) a[i].re /= (double)size, a[i].im /= (double)size;
        wait_for_all();
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 1024);
    while (1L << bits < size) bits++;
    if (1L << bits != size) return 2;
    a = malloc(sizeof *a * (size_t)(size * size));
    b = malloc(sizeof *b * (size_t)(size * size));
    roots = malloc(sizeof *roots * (size_t)size);
    for (long k = 0; k < size / 2; k++) roots[k] = (complex_t){cos(2 * M_PI * (double)k / (double)size), -sin(2 * M_PI * (double)k / (double)size)};
    run_all(body);
    double sum = 0;
    for (long i = 0; i < size * size; i += 97) sum += a[i].re - a[i].im;
    printf("%.6e\n", sum);
    return 0;
}
