// N bodies with a quadtree: one thread builds it, all walk it for their bodies, then move them.
#include "par.h"
struct body { double x, y, vx, vy, ax, ay, mass; };
struct cell { double x, y, mass, middle_x, middle_y, half; int child[4]; int body; };
static struct body *bodies;
static struct cell *cells;
static int used;
static int new_cell(double x, double y, double half) {
    cells[used] = (struct cell){.middle_x = x, .middle_y = y, .half = half, .child = {-1, -1, -1, -1}, .body = -1};
    return used++;
}
static void insert(int c, int b, int depth) {
    for (;;) {
        struct cell *cell = &cells[c];
        const struct body *p = &bodies[b];
        double mass = cell->mass + p->mass;
        int was_empty = cell->mass == 0;
        cell->x = (cell->x * cell->mass + p->x * p->mass) / mass;
        cell->y = (cell->y * cell->mass + p->y * p->mass) / mass;
        cell->mass = mass;
        if (was_empty) {
            cell->body = b;
            return;
        }
        if (depth > 40) return;
        int old = cell->body;
        cell->body = -1;
        for (int pass = old >= 0 ? 0 : 1; pass < 2; pass++) {
            const struct body *q = pass ? p : &bodies[old];
            int quarter = (q->x > cell->middle_x) + 2 * (q->y > cell->middle_y);
            if (cell->child[quarter] < 0) {
                double h = cell->half / 2;
                cell->child[quarter] = new_cell(cell->middle_x + (quarter & 1 ? h : -h), cell->middle_y + (quarter & 2 ? h : -h), h);
            }
            if (pass == 0)
                insert(cell->child[quarter], old, depth + 1);
            else
                c = cell->child[quarter];
        }
        depth++;
    }
}
static void pull(int c, struct body *b) {
    const struct cell *cell = &cells[c];
    double dx = cell->x - b->x, dy = cell->y - b->y, d2 = dx * dx + dy * dy + 1e-4;
    if (cell->body >= 0 || 4 * cell->half * cell->half < 0.25 * d2) {
        double f = cell->mass / (d2 * sqrt(d2));
        b->ax += dx * f;
        b->ay += dy * f;
        return;
    }
    for (int k = 0; k < 4; k++)
        if (cell->child[k] >= 0) pull(cell->child[k], b);
}
static void *body(void *arg) {
    long first, last;
    part(size, (int)(long)arg, &first, &last);
    for (int step = 0; step < 12; step++) {
        if (arg == 0) {
            used = 0;
            new_cell(0, 0, 64);
            for (int b = 0; b < size; b++) insert(0, b, 0);
        }
        wait_for_all();
        for (long i = first; i < last; i++) {
            bodies[i].ax = bodies[i].ay = 0;
            pull(0, &bodies[i]);
        }
        wait_for_all();
        for (long i = first; i < last; i++) {
            struct body *b = &bodies[i];
            b->vx += b->ax * 1e-4;
            b->vy += b->ay * 1e-4;
            b->x += b->vx * 1e-3;
            b->y += b->vy * 1e-3;
        }
        wait_for_all();
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 20000);
    bodies = calloc((size_t)size, sizeof *bodies);
    cells = malloc(sizeof *cells * (size_t)size * 42);
    uint64_t state = 7;
    for (long i = 0; i < size; i++) {
        bodies[i].x = (double)(next_random(&state) % 1000003) / 1000003 * 20 - 10;
        bodies[i].y = (double)(next_random(&state) % 1000003) / 1000003 * 20 - 10;
        bodies[i].mass = 1 + (double)(i % 5);
    }
    run_all(body);
    double sum = 0;
    for (long i = 0; i < size; i++) sum += bodies[i].x * 3 + bodies[i].y;
    printf("%.9f\n", sum);
    return 0;
}
