//! Access to guest memory that may not be there, with the signal handler that the runtime has.

mod common;

use common::in_child;
use crewind_guest::guestmem::*;
use crewind_guest::layout::PAGE;
use crewind_guest::mm::{Backing, MmapArgs, Placement, Space, WriteFault};

extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext, and nobody else uses it now.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = &mut regs[libc::REG_RIP as usize];
    match fixup(*rip as u64) {
        Some(next) => *rip = next as i64,
        // SAFETY: ends the process.
        None => unsafe { libc::_exit(99) },
    }
}

fn handle_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: a zeroed sigaction is valid; the handler only touches its context.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

fn map(space: &mut Space, addr: u64, pages: u64, prot: i32) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let args = MmapArgs {
        addr,
        len: pages * PAGE,
        prot,
        flags,
        offset: 0,
        placement: Placement::Normal,
    };
    space.mmap(&args, Backing::Anon).result.unwrap()
}

const AT: u64 = 0x2000_0000;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn copies_stop_where_memory_ends() {
    in_child(|| {
        handle_faults();
        let mut space = Space::new();
        map(&mut space, AT, 2, RW);
        let end = AT + 2 * PAGE;
        for (at, len, fits) in [
            (end - 100, 100, 100),
            (end - 100, 101, 100),
            (end, 1, 0),
            (AT - 1, 2, 0),
        ] {
            let data = vec![7u8; len];
            let want = if fits == len {
                Ok(())
            } else {
                Err(Fault { copied: fits })
            };
            assert_eq!(copy_to_guest(at, &data), want);
            let mut back = vec![0u8; len];
            assert_eq!(copy_from_guest(&mut back, at), want);
            assert!(back[..fits].iter().all(|&b| b == 7) && back[fits..].iter().all(|&b| b == 0));
        }
        assert_eq!(read_u64(end - 8), Ok(0x0707_0707_0707_0707));
        assert!(read_u64(end - 7).is_err() && read_u32(end - 3).is_err());
        assert!(write_u64(end - 7, 1).is_err() && write_u32(end, 1).is_err());
        assert_eq!(write_u32(end - 4, 0x0102_0304), Ok(()));
        assert_eq!(read_u32(end - 4), Ok(0x0102_0304));
        assert_eq!(read::<[u8; 4]>(end - 4), Ok([4, 3, 2, 1]));
        // The runtime's own memory is no guest memory.
        let mine = 5u64;
        assert!(read_u64(&raw const mine as u64).is_err());
        assert!(copy_to_guest(&raw const mine as u64, &[0]).is_err());
        assert_eq!(
            copy_to_guest(u64::MAX - 3, &[0; 8]),
            Err(Fault { copied: 0 })
        );
        Ok(())
    });
}

#[test]
fn this_process_leaves_the_guest_its_place() {
    crewind_guest::mm::host::check_guest_range_is_free().unwrap();
}

#[test]
fn strings() {
    in_child(|| {
        handle_faults();
        let mut space = Space::new();
        map(&mut space, AT, 2, RW);
        let end = AT + 2 * PAGE;
        copy_to_guest(end - 6, b"hello\0").unwrap();
        assert_eq!(read_cstr(end - 6, 6), Ok(b"hello".to_vec()));
        assert_eq!(read_cstr(end - 6, 5), Err(StrError::TooLong));
        write_u32(end - 4, 0x6c6c_6c6c).unwrap();
        assert_eq!(read_cstr(end - 6, 100), Err(StrError::Fault));
        assert_eq!(read_path(end - 6).map_err(|e| e.0), Err(libc::EFAULT));
        let long = vec![b'x'; 3000];
        copy_to_guest(AT, &long).unwrap();
        assert_eq!(read_cstr(AT, 5000).map(|s| s.len()), Ok(3000));
        // An array of two strings at the end of the mapping.
        copy_to_guest(AT + 4000, b"a\0bc\0").unwrap();
        for (i, word) in [AT + 4000, AT + 4002, 0].into_iter().enumerate() {
            write_u64(end - 24 + i as u64 * 8, word).unwrap();
        }
        let mut room = 100;
        assert_eq!(
            read_strings(end - 24, &mut room),
            Ok(vec![b"a".to_vec(), b"bc".to_vec()])
        );
        assert_eq!(room, 100 - 2 - 3 - 16);
        assert_eq!(
            read_strings(end - 24, &mut 10).map_err(|e| e.0),
            Err(libc::E2BIG)
        );
        write_u64(end - 8, AT + 4002).unwrap();
        assert_eq!(
            read_strings(end - 24, &mut room).map_err(|e| e.0),
            Err(libc::EFAULT)
        );
        assert_eq!(read_strings(0, &mut room), Ok(vec![]));
        Ok(())
    });
}

#[test]
fn guarded_code_is_opened_for_the_kernel() {
    in_child(|| {
        handle_faults();
        let mut space = Space::new();
        map(&mut space, AT, 2, RW | libc::PROT_EXEC);
        space.note_translated(AT + 10, AT + 20).unwrap();
        assert!(write_u32(AT, 1).is_err());
        assert_eq!(write_u32(AT + PAGE, 1), Ok(()));
        let stale = space.prepare_kernel_write(AT + PAGE - 1, 2);
        assert!(stale.invalidate.iter().eq([&(AT..AT + PAGE)]));
        assert_eq!(write_u32(AT, 1), Ok(()));
        assert!(space.prepare_kernel_write(AT, PAGE).invalidate.is_empty());
        space.note_translated(AT + PAGE - 1, AT + PAGE + 1).unwrap();
        assert!(write_u32(AT + PAGE, 1).is_err());
        let WriteFault::Code(stale) = space.write_fault(AT + PAGE) else {
            return Err("not ours?".into());
        };
        assert!(stale.invalidate.iter().eq([&(AT + PAGE..AT + 2 * PAGE)]));
        assert_eq!(write_u32(AT + PAGE, 1), Ok(()));
        assert_eq!(space.write_fault(AT + PAGE), WriteFault::Guest);
        let mut code = [9; 16];
        assert_eq!(space.fetch(AT + 2 * PAGE - 4, &mut code), 4);
        assert_eq!(code[3..5], [0, 9]);
        assert_eq!(space.fetch(AT + 2 * PAGE, &mut code), 0);
        Ok(())
    });
}

/// Equal contents hash alike, whichever pages were touched, and beyond the end of a file nothing is.
#[test]
fn checksums_are_of_contents() {
    in_child(|| {
        handle_faults();
        let file = std::env::temp_dir().join(format!("crewind-checksum-{}", std::process::id()));
        std::fs::write(&file, vec![1u8; 5000]).unwrap();
        let open = std::fs::File::open(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let mut space = Space::new();
        map(&mut space, AT, 100, RW);
        map(&mut space, AT + 0x10_0000, 100, libc::PROT_READ);
        let args = MmapArgs {
            addr: 0x1800_0000,
            len: 4 * PAGE,
            prot: RW,
            flags: libc::MAP_PRIVATE,
            offset: 0,
            placement: Placement::Normal,
        };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&open);
        space.mmap(&args, Backing::Fd(fd)).result.unwrap();
        let empty = space.checksum();
        let mut page = [9u8; 4096];
        copy_from_guest(&mut page, AT + PAGE).unwrap();
        copy_to_guest(AT + 5 * PAGE, &[0; 4096]).unwrap();
        assert_eq!(space.checksum(), empty);
        copy_to_guest(AT + 5 * PAGE + 77, &[1]).unwrap();
        let one = space.checksum();
        assert_ne!(one, empty);
        copy_to_guest(AT + 5 * PAGE + 77, &[0]).unwrap();
        copy_to_guest(AT + 6 * PAGE + 77, &[1]).unwrap();
        assert!(![one, empty].contains(&space.checksum()));
        copy_to_guest(AT + 6 * PAGE + 77, &[0]).unwrap();
        assert_eq!(space.checksum(), empty);
        copy_to_guest(0x1800_0000 + 4999, &[2]).unwrap();
        assert_ne!(space.checksum(), empty);
        Ok(())
    });
}

/// Advice that splits only the host's mapping does not keep the guest's from moving as one.
#[test]
fn what_is_one_mapping_to_the_guest_moves_as_one() {
    in_child(|| {
        handle_faults();
        let mut space = Space::new();
        map(&mut space, AT, 4, RW);
        for page in 0..4 {
            write_u64(AT + page * PAGE, page).unwrap();
        }
        space
            .madvise(AT + PAGE, PAGE, libc::MADV_DONTDUMP)
            .result
            .unwrap();
        let to = AT + 0x10_0000;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        assert_eq!(
            space.mremap(AT, 4 * PAGE, 6 * PAGE, flags, to).result,
            Ok(to)
        );
        for page in 0..6 {
            let want = if page < 4 { page } else { 0 };
            assert_eq!(read_u64(to + page * PAGE), Ok(want));
            assert!(write_u64(to + page * PAGE, 1).is_ok());
        }
        assert!(read_u64(AT).is_err() && space.find(AT).is_none());
        Ok(())
    });
}
