//! Random calls against a model of the kernel that knows pages only: their rights and what they contain.
//!
//! What is checked after every call: the host has mapped what the guest has, with the guest's rights except for
//! guards; mappings are merged; and a page that still counts as translated holds what it held when it was.

use super::host::{FileFacts, Host};
use super::vma::FileId;
use super::*;
use crate::layout::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;

/// Where a page's content comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    /// Nobody else's: a version number.
    Own(u64),
    /// Private view of a page of an object, not yet written.
    PrivateOf(RawFd, u64),
    /// Page of an object.
    Of(RawFd, u64),
}

/// A kernel of pages. Object numbers are descriptors; those of shared anonymous memory are negative.
#[derive(Clone, Debug, Default)]
struct FakeHost {
    pages: BTreeMap<u64, (i32, Content)>,
    versions: HashMap<(RawFd, u64), u64>,
    next: u64,
    /// Calls that need more mappings than this fail, as with `vm.max_map_count`.
    most_mappings: Option<usize>,
}

impl FakeHost {
    /// Number of mappings, as far as rights make them.
    fn mappings(&self) -> usize {
        let mut last = None;
        let mut count = 0;
        for (&page, &(prot, _)) in &self.pages {
            count += usize::from(last != Some((page.wrapping_sub(PAGE), prot)));
            last = Some((page, prot));
        }
        count
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Identifies the bytes of a page.
    fn bytes_of(&self, page: u64) -> Option<(RawFd, u64, u64)> {
        let (_, content) = self.pages.get(&page)?;
        Some(match *content {
            Content::Own(v) => (0, 0, v),
            Content::PrivateOf(fd, n) | Content::Of(fd, n) => {
                (fd, n, self.versions.get(&(fd, n)).copied().unwrap_or(0))
            }
        })
    }

    /// A store of the guest or the kernel; `false` when it faults.
    fn store(&mut self, page: u64) -> bool {
        let version = self.fresh();
        match self.pages.get_mut(&page) {
            Some((prot, content)) if *prot & libc::PROT_WRITE != 0 => {
                match *content {
                    Content::Of(fd, n) => drop(self.versions.insert((fd, n), version)),
                    _ => *content = Content::Own(version),
                }
                true
            }
            _ => false,
        }
    }
}

fn each(addr: u64, len: u64) -> impl Iterator<Item = u64> {
    assert!(page_aligned(addr) && page_aligned(len) && is_guest(addr, len));
    (addr..addr + len).step_by(PAGE as usize)
}

impl Host for FakeHost {
    fn mmap(
        &mut self,
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Result<(), Errno> {
        let shared = flags & libc::MAP_SHARED != 0;
        let anon = flags & libc::MAP_ANONYMOUS != 0;
        let object = if anon { -(self.fresh() as RawFd) } else { fd };
        for page in each(addr, len) {
            let n = (offset + page - addr) / PAGE;
            let content = match (shared, anon) {
                (true, _) => Content::Of(object, n),
                (false, false) => Content::PrivateOf(object, n),
                (false, true) => Content::Own(self.fresh()),
            };
            self.pages.insert(page, (prot, content));
        }
        Ok(())
    }

    fn munmap(&mut self, addr: u64, len: u64) -> Result<(), Errno> {
        self.pages
            .retain(|page, _| !(addr..addr + len).contains(page));
        Ok(())
    }

    fn mprotect(&mut self, addr: u64, len: u64, prot: i32) -> Result<(), Errno> {
        let (before, count) = (self.pages.clone(), self.mappings());
        for page in each(addr, len) {
            self.pages.get_mut(&page).expect("mprotect of a hole").0 = prot;
        }
        if self
            .most_mappings
            .is_some_and(|most| self.mappings() > most.max(count))
        {
            self.pages = before;
            return Err(Errno(libc::ENOMEM));
        }
        Ok(())
    }

    fn mremap(
        &mut self,
        addr: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: Option<u64>,
    ) -> Result<(), Errno> {
        let at = to.unwrap_or(addr);
        let first = *self.pages.get(&addr).expect("mremap of a hole");
        let moved: Vec<_> = each(addr, old).map(|p| self.pages[&p]).collect();
        if flags & libc::MREMAP_DONTUNMAP != 0 {
            let fresh: Vec<u64> = each(addr, old).map(|_| self.fresh()).collect();
            for (page, version) in each(addr, old).zip(fresh) {
                let (_, content) = self.pages.get_mut(&page).expect("just read");
                if !matches!(content, Content::Of(..)) {
                    *content = Content::Own(version);
                }
            }
        } else {
            self.munmap(addr, old)?;
        }
        for (i, page) in each(at, new).enumerate() {
            let entry = moved.get(i).copied().unwrap_or_else(|| {
                let content = match first.1 {
                    Content::Own(_) => Content::Own(self.fresh()),
                    Content::PrivateOf(fd, n) => Content::PrivateOf(fd, n + i as u64),
                    Content::Of(fd, n) => Content::Of(fd, n + i as u64),
                };
                (first.0, content)
            });
            self.pages.insert(page, entry);
        }
        Ok(())
    }

    fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Result<(), Errno> {
        for page in each(addr, len) {
            let fresh = self.fresh();
            let (_, content) = self.pages.get_mut(&page).expect("madvise of a hole");
            if advice == libc::MADV_DONTNEED && !matches!(content, Content::Of(..)) {
                // A private file page would go back to the file's; any change will do for the model.
                *content = Content::Own(fresh);
            }
        }
        Ok(())
    }

    fn msync(&mut self, _: u64, _: u64, _: i32) -> Result<(), Errno> {
        Ok(())
    }

    fn mlock(&mut self, _: u64, _: u64, _: u32) -> Result<(), Errno> {
        Ok(())
    }

    fn munlock(&mut self, _: u64, _: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn mincore(&mut self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn file(&mut self, fd: RawFd) -> Result<FileFacts, Errno> {
        let id = FileId {
            dev: 1,
            ino: fd as u64,
            path: b"/file".as_slice().into(),
        };
        Ok(FileFacts {
            id,
            writable: fd % 2 == 0,
            noexec: false,
        })
    }

    fn shm_len(&mut self, _: i32) -> Result<u64, Errno> {
        Ok(3 * PAGE)
    }

    fn shmat(&mut self, id: i32, addr: u64, flags: i32) -> Result<(), Errno> {
        let write = if flags & libc::SHM_RDONLY == 0 {
            libc::PROT_WRITE
        } else {
            0
        };
        self.mmap(
            addr,
            3 * PAGE,
            libc::PROT_READ | write,
            libc::MAP_SHARED,
            1000 + id,
            0,
        )
    }

    fn write(&mut self, addr: u64, _: &[u8]) {
        assert!(self.store(page_down(addr)));
    }

    fn copy(&mut self, _: u64, _: u64, _: u64) {}
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: u64,
        len: u64,
        prot: i32,
        fd: RawFd,
        shared: bool,
        page: u64,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    Protect {
        at: u64,
        len: u64,
        prot: i32,
    },
    Remap {
        at: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: u64,
    },
    Advise {
        at: u64,
        len: u64,
        advice: i32,
    },
    Attach {
        at: u64,
        flags: i32,
    },
    Detach {
        at: u64,
    },
    Brk {
        to: u64,
    },
    Lock {
        at: u64,
        len: u64,
    },
    Fork,
    /// From now on there are no more mappings to be had, or again.
    Scarce(bool),
    Translate {
        at: u64,
        len: u64,
    },
    Store {
        at: u64,
    },
    KernelWrite {
        at: u64,
        len: u64,
    },
}

const ARENA: u64 = 0x2000_0000;
const PAGES: u64 = 24;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let at = || (0..PAGES).prop_map(|p| ARENA + p * PAGE);
    let len = || (1..8u64).prop_map(|p| p * PAGE);
    let prot = || {
        prop_oneof![
            0..8i32,
            Just(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
        ]
    };
    let remap_flags = prop_oneof![
        Just(0),
        Just(libc::MREMAP_MAYMOVE),
        Just(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED),
        Just(libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP),
    ];
    let advice = prop_oneof![
        Just(libc::MADV_DONTNEED),
        Just(libc::MADV_FREE),
        Just(libc::MADV_DONTFORK),
        Just(libc::MADV_WIPEONFORK),
    ];
    let op = prop_oneof![
        4 => (at(), len(), prot(), 0..4i32, any::<bool>(), 0..4u64)
            .prop_map(|(at, len, prot, fd, shared, page)| Op::Map { at, len, prot, fd, shared, page }),
        1 => (at(), len()).prop_map(|(at, len)| Op::Unmap { at, len }),
        3 => (at(), len(), prot()).prop_map(|(at, len, prot)| Op::Protect { at, len, prot }),
        2 => (at(), len(), len(), remap_flags, at())
            .prop_map(|(at, old, new, flags, to)| Op::Remap { at, old, new, flags, to }),
        1 => (at(), len(), advice).prop_map(|(at, len, advice)| Op::Advise { at, len, advice }),
        1 => (at(), prop_oneof![Just(0), Just(libc::SHM_REMAP), Just(libc::SHM_REMAP | libc::SHM_EXEC)])
            .prop_map(|(at, flags)| Op::Attach { at, flags }),
        1 => at().prop_map(|at| Op::Detach { at }),
        1 => (0..6 * PAGE).prop_map(|n| Op::Brk { to: BRK_START + n }),
        1 => (at(), len()).prop_map(|(at, len)| Op::Lock { at, len }),
        1 => Just(Op::Fork),
        1 => any::<bool>().prop_map(Op::Scarce),
        6 => (at(), len()).prop_map(|(at, len)| Op::Translate { at, len }),
        4 => at().prop_map(|at| Op::Store { at }),
        2 => (at(), len()).prop_map(|(at, len)| Op::KernelWrite { at, len }),
    ];
    proptest::collection::vec(op, 1..60)
}

/// Pages translated, with what they held then.
type Translated = BTreeMap<u64, (RawFd, u64, u64)>;

fn apply(space: &mut Space<FakeHost>, op: &Op, translated: &mut Translated) -> Effects {
    match *op {
        Op::Map {
            at,
            len,
            prot,
            fd,
            shared,
            page,
        } => {
            let sharing = if shared {
                libc::MAP_SHARED
            } else {
                libc::MAP_PRIVATE
            };
            let anon = if fd == 0 { libc::MAP_ANONYMOUS } else { 0 };
            let flags = sharing | anon | libc::MAP_FIXED;
            let offset = if fd == 0 { 0 } else { page * PAGE };
            let args = MmapArgs {
                addr: at,
                len,
                prot,
                flags,
                offset,
                placement: Placement::Normal,
            };
            let out = space.mmap(&args, Backing::Fd(fd));
            let allowed = fd == 0 || !shared || fd % 2 == 0 || prot & libc::PROT_WRITE == 0;
            assert_eq!(out.result.is_ok(), allowed);
            out.effects
        }
        Op::Unmap { at, len } => space.munmap(at, len).effects,
        Op::Protect { at, len, prot } => space.mprotect(at, len, prot).effects,
        Op::Remap {
            at,
            old,
            new,
            flags,
            to,
        } => space.mremap(at, old, new, flags, to).effects,
        Op::Advise { at, len, advice } => space.madvise(at, len, advice).effects,
        Op::Attach { at, flags } => space.shmat(1, at, flags, ShmSource::Host).effects,
        Op::Detach { at } => space.shmdt(at).effects,
        Op::Brk { to } => {
            let out = space.brk(to);
            assert_eq!(out.result, Ok(to));
            out.effects
        }
        Op::Lock { at, len } => {
            let _ = space.mlock(at, len, 0);
            Effects::default()
        }
        Op::Fork => space.after_fork(),
        Op::Scarce(on) => {
            space.host.most_mappings = on.then(|| space.host.mappings());
            Effects::default()
        }
        Op::Translate { at, len } => {
            // As the translator does: only what is executable, noted before it is read.
            if let Some((_, end)) = space.executable_range(at) {
                let end = end.min(at + len);
                if space.note_translated(at, end).is_err() {
                    assert!(space.host.most_mappings.is_some());
                    return Effects::default();
                }
                for page in each(at, page_down(end) - at) {
                    let bytes = space.host.bytes_of(page).unwrap();
                    translated.entry(page).or_insert(bytes);
                }
            }
            Effects::default()
        }
        Op::Store { at } => {
            let allowed = space.check(at, 8, Access::Write);
            let scarce = space.host.most_mappings.is_some();
            let stuck = |fx: &Effects| scarce && fx.out_of_mappings;
            match space.host.store(at) {
                true => Effects::default(),
                false => match space.write_fault(at) {
                    WriteFault::Code(fx) => {
                        let stored = space.host.store(at);
                        assert!(
                            stored || stuck(&fx),
                            "a store that faulted on code must work afterwards"
                        );
                        fx
                    }
                    WriteFault::Guest => {
                        assert!(!allowed, "the guest may store there");
                        Effects::default()
                    }
                },
            }
        }
        Op::KernelWrite { at, len } => {
            let fx = space.prepare_kernel_write(at + 5, len - 5);
            let scarce = space.host.most_mappings.is_some();
            let stuck = |fx: &Effects| scarce && fx.out_of_mappings;
            for page in each(at, len) {
                assert!(
                    space.host.store(page) == space.check(page, 1, Access::Write) || stuck(&fx)
                );
            }
            fx
        }
    }
}

fn check_all(space: &Space<FakeHost>, translated: &Translated) {
    // The host has what the guest has.
    let guest: Vec<u64> = space
        .vmas
        .iter()
        .flat_map(|v| each(v.start, v.len()))
        .collect();
    assert_eq!(guest, space.host.pages.keys().copied().collect::<Vec<_>>());
    // Rights are the guest's, less guards. Every translated page that can be written anywhere is guarded there.
    for (&page, &(prot, _)) in &space.host.pages {
        let wanted = space::host_prot(space.find(page).unwrap().prot);
        assert!(
            prot == wanted || prot | libc::PROT_WRITE == wanted,
            "{page:x}: {prot} for {wanted}"
        );
    }
    // Nothing that could be one mapping is two.
    let all: Vec<&Vma> = space.vmas.iter().collect();
    for pair in all.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        assert!(a.end <= b.start);
        let mut joined = VmaTreeProbe::default();
        joined.insert(a.clone());
        joined.insert(b.clone());
        assert_eq!(joined.count(), 2, "{a:x?} and {b:x?} are not merged");
    }
    // Translations are of what is there.
    for (&page, bytes) in translated {
        assert!(
            space.find(page).is_some_and(|v| v.prot.exec),
            "{page:x}: no longer code"
        );
        assert_eq!(
            space.host.bytes_of(page).as_ref(),
            Some(bytes),
            "{page:x}: changed"
        );
    }
    let counted: u64 = space
        .code
        .translated_in(0..GUEST_END)
        .iter()
        .map(|r| (r.end - r.start) / PAGE)
        .sum();
    assert_eq!(counted, translated.len() as u64);
}

type VmaTreeProbe = vma::VmaTree;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn mappings_and_translations_stay_true(ops in ops()) {
        let mut space = Space::with_host(FakeHost::default());
        let mut translated = Translated::new();
        for op in &ops {
            let fx = apply(&mut space, op, &mut translated);
            if fx.out_of_mappings {
                assert!(space.host.most_mappings.is_some());
                break;
            }
            for range in fx.invalidate {
                translated.retain(|page, _| !range.contains(page));
            }
            check_all(&space, &translated);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, ..ProptestConfig::default() })]
    /// The same calls give the same addresses, and never ones that are taken or not the guest's.
    #[test]
    fn placement(sizes in proptest::collection::vec((1..2000u64, 0..4u8, any::<bool>()), 1..60)) {
        let mut a = Space::with_host(FakeHost::default());
        let mut b = a.clone();
        for (pages, kind, unmap) in sizes {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if kind == 1 { libc::MAP_32BIT } else { 0 };
            let placement = if kind == 2 { Placement::ElfImage } else { Placement::Normal };
            let args = MmapArgs { addr: 0, len: pages * PAGE, prot: 3, flags, offset: 0, placement };
            let free_before = a.vmas.clone();
            let at = a.mmap(&args, Backing::Anon).result.unwrap();
            prop_assert_eq!(b.mmap(&args, Backing::Anon).result, Ok(at));
            prop_assert!(free_before.is_free(at..at + pages * PAGE));
            let area = if kind == 1 || kind == 2 { LOW_PLACE_START..LOW_END } else { MMAP_START..MMAP_END };
            prop_assert!(area.contains(&at) && at + pages * PAGE <= area.end);
            if pages % 512 == 0 && kind == 0 {
                prop_assert_eq!(at % (2 << 20), 0);
            }
            if unmap {
                prop_assert!(a.munmap(at, pages * PAGE / 2).result.is_ok() || pages == 1);
                prop_assert!(b.munmap(at, pages * PAGE / 2).result.is_ok() || pages == 1);
            }
        }
        prop_assert_eq!(a.render_maps(), b.render_maps());
    }
}

#[test]
fn the_runtime_is_out_of_reach() {
    let mut s = Space::with_host(FakeHost::default());
    let map = |s: &mut Space<FakeHost>, addr, flags| {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let args = MmapArgs {
            addr,
            len: 2 * PAGE,
            prot: 3,
            flags,
            offset: 0,
            placement: Placement::Normal,
        };
        s.mmap(&args, Backing::Anon).result
    };
    for addr in [
        CACHE_START,
        RUNTIME_LOW - PAGE,
        GUEST_END - PAGE,
        GUEST_END,
        0x7fff_0000_0000,
    ] {
        assert_eq!(map(&mut s, addr, libc::MAP_FIXED), Err(Errno(libc::ENOMEM)));
        // As a hint it is not honoured.
        let at = map(&mut s, addr, 0).unwrap();
        assert!((MMAP_START..MMAP_END).contains(&at));
        assert_eq!(s.munmap(addr, 2 * PAGE).result, Ok(()));
    }
    assert_eq!(map(&mut s, 0, libc::MAP_FIXED), Err(Errno(libc::EPERM)));
    assert_eq!(map(&mut s, 0x1234_5678, 0), Ok(0x1234_5000));
    assert_eq!(
        map(&mut s, 0x1234_5000, libc::MAP_FIXED_NOREPLACE),
        Err(Errno(libc::EEXIST))
    );
    assert_eq!(
        s.mremap(0x1234_5000, 2 * PAGE, 2 * PAGE, 3, CACHE_START)
            .result,
        Err(Errno(libc::ENOMEM))
    );
}

#[test]
fn a_jit_with_two_views_is_noticed() {
    let mut s = Space::with_host(FakeHost::default());
    let mut map = |addr, prot| {
        let args = MmapArgs {
            addr,
            len: 4 * PAGE,
            prot,
            flags: libc::MAP_SHARED | libc::MAP_FIXED,
            offset: 0,
            placement: Placement::Normal,
        };
        s.mmap(&args, Backing::Fd(2)).result.unwrap()
    };
    let (code, data) = (map(0x1000_0000, 5), map(0x1100_0000, 3));
    s.note_translated(code + PAGE + 8, code + PAGE + 16)
        .unwrap();
    assert_eq!(s.write_fault(data), WriteFault::Guest);
    assert!(!s.host.store(data + PAGE));
    let mut stale = Effects::default();
    stale.invalidate.push(code + PAGE..code + 2 * PAGE);
    assert_eq!(s.write_fault(data + PAGE + 7), WriteFault::Code(stale));
    assert!(s.host.store(data + PAGE));
    assert_eq!(
        s.overlaps(1, 2, PAGE + 1, 2),
        vec![(code + PAGE + 1, 2), (data + PAGE + 1, 2)]
    );
}

#[test]
fn stacks_grow() {
    let mut s = Space::with_host(FakeHost::default());
    s.map_stack(8 << 20, false).unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED;
    let args = MmapArgs {
        addr: 0x1800_0000,
        len: PAGE,
        prot: 3,
        flags,
        offset: 0,
        placement: Placement::Normal,
    };
    assert!(s.mmap(&args, Backing::Anon).result.is_ok());
    assert!(s.grow_down(0x1800_0000 - 3 * PAGE + 1));
    assert!(s.check(0x1800_0000 - 3 * PAGE, 4 * PAGE, Access::Write));
    assert!(!s.grow_down(0x1800_0000 - (9 << 20)));
    assert!(!s.grow_down(0x1900_0000));
    let maps = String::from_utf8(s.render_maps()).unwrap();
    assert!(maps.ends_with("[stack]\n"), "{maps}");
}

#[test]
fn break_moves() {
    let mut s = Space::with_host(FakeHost::default());
    let brk = |s: &mut Space<FakeHost>, to| s.brk(to).result.unwrap();
    assert_eq!(brk(&mut s, 0), BRK_START);
    assert_eq!(brk(&mut s, BRK_START + 5000), BRK_START + 5000);
    assert!(s.check(BRK_START, 2 * PAGE, Access::Write));
    assert!(!s.check(BRK_START, 2 * PAGE + 1, Access::Write));
    assert_eq!(brk(&mut s, BRK_START - 1), BRK_START + 5000);
    s.set_data_limit(8000);
    assert_eq!(brk(&mut s, BRK_START + 8001), BRK_START + 5000);
    assert_eq!(brk(&mut s, BRK_START + 1), BRK_START + 1);
    assert!(!s.check(BRK_START + PAGE, 1, Access::Read));
    assert!(
        String::from_utf8(s.render_maps())
            .unwrap()
            .contains("[heap]")
    );
}
