//! The calls for C, as `include/crewind.h` declares them.

use std::ffi::{c_long, c_void};
use std::sync::Mutex;

use crate::{EFAULT, ENOMEM, Node, RECORD, REPLAY, call, number};

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
}

/// Gives memory for nodes.
type Allocator = unsafe extern "C" fn(size: usize, context: *mut c_void) -> *mut c_void;

/// Where the nodes of the next list go.
#[derive(Clone, Copy)]
enum Room {
    Malloc,
    From(Allocator, *mut c_void),
    Buffer(*mut Node, usize),
}

struct State {
    room: Room,
    head: *mut Node,
}

// SAFETY: the pointers are C's, which says what threads may do with them.
unsafe impl Send for State {}

static STATE: Mutex<State> = Mutex::new(State {
    room: Room::Malloc,
    head: std::ptr::null_mut(),
});

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Has nodes come from a function; from `malloc` if that is NULL.
///
/// # Safety
/// The function may be called with `context` until another way is chosen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rec_set_allocator(allocate: Option<Allocator>, context: *mut c_void) {
    state().room = match allocate {
        Some(f) => Room::From(f, context),
        None => Room::Malloc,
    };
}

/// Has nodes come from a buffer.
///
/// # Safety
/// The buffer holds `count` nodes, and stays until another way is chosen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rec_set_buffer(nodes: *mut c_void, count: usize) {
    state().room = Room::Buffer(nodes.cast(), count);
}

/// Begins to record.
///
/// # Safety
/// `rec` is NULL or stays until the recording ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn start_rec(rec: *mut c_void) -> c_long {
    // SAFETY: nothing is read or written yet.
    let ret = unsafe { call(number::START, RECORD, rec as u64, 0) };
    if ret == 0 {
        state().head = rec.cast();
    }
    ret
}

/// Ends the recording, and fills the list that `start_rec` was given.
///
/// # Safety
/// That list is still there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stop_rec() -> c_long {
    // SAFETY: no pointers.
    let n = unsafe { call(number::STOP, RECORD, 0, 0) };
    let head = state().head;
    if n < 0 || head.is_null() {
        return n;
    }
    // SAFETY: by the caller's promise.
    unsafe { fill(head, n) }
}

/// Begins to replay the order of a list.
///
/// # Safety
/// `rec` is the head of a list.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn start_rep(rec: *const c_void) -> c_long {
    if rec.is_null() {
        return -EFAULT;
    }
    // SAFETY: by the caller's promise; the list is only read, and now.
    unsafe { call(number::START, REPLAY, rec as u64, 0) }
}

/// Ends the replay.
#[unsafe(no_mangle)]
pub extern "C" fn stop_rep() -> c_long {
    // SAFETY: no pointers.
    unsafe { call(number::STOP, REPLAY, 0, 0) }
}

/// Copies the steps of the last recording or replay to `rec`.
///
/// # Safety
/// `rec` is a node.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rec_list(rec: *mut c_void) -> c_long {
    // SAFETY: no room, no node is written; the head is the caller's.
    let n = unsafe { call(number::LIST, rec as u64, 0, 0) };
    if n <= 0 {
        return n;
    }
    // SAFETY: by the caller's promise.
    unsafe { fill(rec.cast(), n) }
}

/// # Safety
/// `head` is a node.
unsafe fn fill(head: *mut Node, n: i64) -> c_long {
    let room = state().room;
    let Some(size) = usize::try_from(n)
        .ok()
        .and_then(|n| n.checked_mul(size_of::<Node>()))
    else {
        return -ENOMEM;
    };
    let (nodes, count): (*mut Node, i64) = match room {
        _ if n == 0 => (std::ptr::null_mut(), 0),
        // SAFETY: allocates.
        Room::Malloc => (unsafe { malloc(size) }.cast(), n),
        // SAFETY: as whoever set it promised.
        Room::From(f, context) => (unsafe { f(size, context) }.cast(), n),
        Room::Buffer(nodes, count) => (nodes, n.min(i64::try_from(count).unwrap_or(n))),
    };
    if nodes.is_null() && count > 0 {
        return -ENOMEM;
    }
    // SAFETY: room for `count` nodes, and the head.
    unsafe { call(number::LIST, head as u64, nodes as u64, count as u64) }
}
