// Anonymous memory: placement rules, hints, MAP_FIXED over others, holes, NOREPLACE, mremap, madvise, mincore.
#include "check.h"
static const size_t page = 4096;
static char *map(void *hint, size_t pages, int prot, int flags) {
    return mmap(hint, pages * page, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}
static int probe(char *p) { // 0: unmapped, 1: mapped
    unsigned char vec;
    return mincore(p, page, &vec) == 0;
}
int main(void) {
    char *a = SYS(map(0, 16, PROT_READ | PROT_WRITE, 0));
    for (int i = 0; i < 16; i++) a[i * page] = (char)(a[i * page] + i + 1);
    SYS(munmap(a + 4 * page, 2 * page));
    CHECK(probe(a + 3 * page) && !probe(a + 4 * page) && !probe(a + 5 * page) && probe(a + 6 * page));
    char *b = SYS(map(a + 4 * page, 1, PROT_READ | PROT_WRITE, MAP_FIXED));
    CHECK(b == a + 4 * page && *b == 0);
    CHECK(map(a + 3 * page, 2, PROT_READ, MAP_FIXED_NOREPLACE) == MAP_FAILED && errno == EEXIST);
    CHECK(map(a + 5 * page, 1, PROT_READ, MAP_FIXED_NOREPLACE) == a + 5 * page);
    SYS(map(a + 8 * page, 4, PROT_READ | PROT_WRITE, MAP_FIXED)); // fresh zeroes over old data
    CHECK(a[8 * page] == 0 && a[7 * page] == 8 && a[12 * page] == 13);
    SYS(mprotect(a + 2 * page, page, PROT_NONE));
    SYS(mprotect(a + 2 * page, page, PROT_READ));
    CHECK(a[2 * page] == 3);
    FAILS(mprotect(a + 1, page, PROT_READ), EINVAL);
    char *unmapped = SYS(map(0, 4, PROT_READ, 0));
    SYS(munmap(unmapped, 4 * page));
    FAILS(mprotect(unmapped, page, PROT_READ), ENOMEM);
    SYS(munmap(unmapped, 4 * page)); // unmapping nothing is no error
    FAILS(munmap(a + 1, page), EINVAL);
    CHECK(mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(0, page, PROT_READ, MAP_PRIVATE, 999, 0) == MAP_FAILED && errno == EBADF);
    CHECK(mmap(0, (size_t)1 << 50, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
    // mremap: shrink, grow in place or move, move to a fixed place, keep content.
    char *m = SYS(map(0, 8, PROT_READ | PROT_WRITE, 0));
    for (int i = 0; i < 8; i++) m[i * page] = (char)(100 + i);
    CHECK(mremap(m, 8 * page, 4 * page, 0) == m && !probe(m + 4 * page));
    char *blocker = SYS(map(m + 4 * page, 1, PROT_READ, MAP_FIXED_NOREPLACE));
    CHECK(mremap(m, 4 * page, 8 * page, 0) == MAP_FAILED && errno == ENOMEM);
    char *moved = SYS((char *)mremap(m, 4 * page, 64 * page, MREMAP_MAYMOVE));
    CHECK(moved != m && moved[3 * page] == 103 && moved[63 * page] == 0 && !probe(m));
    char *place = SYS(map(0, 4, PROT_NONE, 0));
    CHECK(mremap(moved, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    CHECK(place[2 * page] == 102 && !probe(moved) && probe(moved + 4 * page));
    SYS(munmap(blocker, page));
    // madvise
    char *d = SYS(map(0, 4, PROT_READ | PROT_WRITE, MAP_NORESERVE));
    memset(d, 7, 4 * page);
    SYS(madvise(d + page, page, MADV_DONTNEED));
    CHECK(d[0] == 7 && d[page] == 0 && d[2 * page] == 7);
    SYS(madvise(d, 4 * page, MADV_WILLNEED));
    SYS(madvise(d, 4 * page, MADV_HUGEPAGE) == 0 || errno == EINVAL);
    // Locked memory is not dropped.
    SYS(mlock(d, page));
    CHECK(madvise(d, page, MADV_DONTNEED) == -1 && errno == EINVAL && d[0] == 7);
    CHECK(madvise(d, 4 * page, MADV_DONTNEED) == -1 && d[3 * page] == 7);
    SYS(munlock(d, page));
    SYS(madvise(d, page, MADV_DONTNEED));
    CHECK(d[0] == 0);
    SYS(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
    char *future = SYS(map(0, 1, PROT_READ | PROT_WRITE, 0));
    CHECK(madvise(d, page, MADV_DONTNEED) == -1 && madvise(future, page, MADV_DONTNEED) == -1);
    SYS(munlockall());
    SYS(madvise(future, page, MADV_DONTNEED));
    // Low 2 GiB on request.
    char *low = SYS(map(0, 2, PROT_READ | PROT_WRITE, MAP_32BIT));
    CHECK((uintptr_t)low < 0x80000000);
    low[page] = 1;
    // A hint that is free is honoured.
    char *hint = (char *)0x300000000000;
    char *hinted = SYS(map(hint, 4, PROT_READ | PROT_WRITE, 0));
    CHECK(hinted == hint);
    CHECK(map(hint, 4, PROT_READ, 0) != hint);
    // Large sparse reservations.
    char *huge = SYS(map(0, ((size_t)64 << 30) / page, PROT_NONE, MAP_NORESERVE));
    SYS(mprotect(huge + ((size_t)33 << 30), page, PROT_READ | PROT_WRITE));
    huge[(size_t)33 << 30] = 1;
    SYS(munmap(huge, (size_t)64 << 30));
    // MAP_GROWSDOWN and many small mappings with alternating protection.
    for (int i = 0; i < 2000; i++) {
        char *s = SYS(map(0, 2, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE, 0));
        if (i % 2 == 0) s[0] = (char)i;
        if (i % 3 == 0) SYS(munmap(s, page));
    }
    FAILS(mincore(unmapped + 1, page, (unsigned char *)d), EINVAL);
    puts("memory works");
    return 0;
}
