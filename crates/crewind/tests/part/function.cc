// Functions at whose first call a recording can begin: a method that threads call, one with C's name, one in a library that is
// loaded later.
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
namespace outer {
struct Work {
    int done;
    __attribute__((noinline)) void run(int k);
};
void Work::run(int k) {
    std::printf("run %d\n", k);
    done += k;
}
} // namespace outer
extern "C" __attribute__((noinline)) void late(int k) { std::printf("late %d\n", k); }
static void *body(void *p) {
    for (int i = 0; i < 3; i++) static_cast<outer::Work *>(p)->run(i);
    return 0;
}
int main(int argc, char **argv) {
    std::setvbuf(stdout, 0, _IONBF, 0);
    outer::Work work{0};
    std::printf("before\n");
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, body, &work) != 0) return 1;
        pthread_join(thread, 0);
    }
    late(work.done);
    if (argc > 1) {
        void *library = dlopen(argv[1], RTLD_NOW);
        if (!library) return 2;
        auto function = reinterpret_cast<void (*)(int)>(dlsym(library, "in_library"));
        for (int i = 0; i < 2; i++) function(i);
    }
    std::printf("end\n");
    return 7;
}
