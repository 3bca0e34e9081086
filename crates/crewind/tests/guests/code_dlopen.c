// dlopen and dlclose in a loop: code goes away and other code comes to the same addresses; TLS of libraries,
// constructors and destructors, lazy binding.
// also-lib
#include "check.h"
#ifdef LIB
static __thread int mine = 5;
__thread int exported_tls[100];
int library_state = 1;
__attribute__((constructor)) static void loaded(void) { library_state = 10; }
__attribute__((destructor)) static void unloaded(void) {
    int *counter = (int *)(uintptr_t)strtoul(getenv("COUNTER"), 0, 16);
    ++*counter;
}
int library_function(int x) {
    exported_tls[x % 100] += x;
    mine += x;
    return mine * 100 + library_state++ + exported_tls[x % 100] + (int)strlen("bound lazily");
}
#else
#include <dlfcn.h>
static __thread int main_tls = 3;
int main(int argc, char **argv) {
    CHECK(argc > 1);
    static int counter;
    char text[32];
    snprintf(text, sizeof text, "%lx", (unsigned long)(uintptr_t)&counter);
    setenv("COUNTER", text, 1);
    long sum = 0;
    for (int i = 0; i < 100; i++) {
        void *lib = dlopen(argv[1], i % 2 ? RTLD_NOW : RTLD_LAZY);
        if (!lib) fputs(dlerror(), stderr);
        CHECK(lib);
        int (*f)(int) = (int (*)(int))dlsym(lib, "library_function");
        CHECK(f);
        sum += f(i) + f(i + 1);
        main_tls += i;
        void *m = i % 3 ? 0 : dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);
        if (m) {
            double (*c)(double) = (double (*)(double))dlsym(m, "cos");
            CHECK(c && c(0) == 1);
            dlclose(m);
        }
        dlclose(lib);
        CHECK(counter == i + 1);
    }
    CHECK(!dlopen("/no/such/library.so", RTLD_NOW));
    printf("%ld %d\n", sum, main_tls);
    return 0;
}
#endif
