// C++ exceptions through many frames, with destructors, rethrow, nested, and across a qsort callback.
// build: -fexceptions
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>
#include <typeinfo>

struct Trail {
    int *count;
    ~Trail() { ++*count; }
};

static int deep(int n, int *count) {
    Trail trail{count};
    if (n == 0) throw std::runtime_error("bottom");
    return deep(n - 1, count) + 1;
}

static int compare(const void *a, const void *b) {
    if (*static_cast<const int *>(a) == 13) throw 13;
    return *static_cast<const int *>(a) - *static_cast<const int *>(b);
}

int main() {
    int unwound = 0;
    for (int i = 0; i < 200; i++) {
        try {
            deep(i, &unwound);
        } catch (const std::exception &e) {
            if (i % 50 == 0) std::printf("%d: %s, %d frames\n", i, e.what(), unwound);
        }
    }
    try {
        try {
            throw std::logic_error("inner");
        } catch (std::logic_error &e) {
            std::throw_with_nested(std::out_of_range("outer"));
        }
    } catch (std::exception &e) {
        std::printf("%s", e.what());
        try {
            std::rethrow_if_nested(e);
        } catch (std::exception &inner) {
            std::printf(" of %s\n", inner.what());
        }
    }
    std::vector<int> numbers;
    for (int i = 0; i < 40; i++) numbers.push_back((i * 17 + 5) % 41);
    try {
        std::qsort(numbers.data(), numbers.size(), sizeof(int), compare);
    } catch (int n) {
        std::printf("caught %d through qsort\n", n);
    }
    try {
        std::string().at(3);
    } catch (const std::out_of_range &e) {
        std::printf("out of range\n");
    }
    try {
        std::vector<int> huge;
        huge.reserve(static_cast<size_t>(-1));
    } catch (const std::length_error &) {
        std::printf("too long\n");
    }
    return 0;
}
