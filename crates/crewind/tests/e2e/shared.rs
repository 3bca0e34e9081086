//! Processes that share memory, in each way to record.

use crate::harness::{Case, guest};

macro_rules! sharing {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                guest(stringify!($name)).run_in_modes(1);
            }
        )*
        /// Guests that only run here.
        pub const GUESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

sharing! {
    shared_memory share_counters share_sync share_seqlock share_exec share_files share_insns share_threads
    share_robust share_code
}

#[test]
fn python_multiprocessing() {
    let script = r#"
import multiprocessing as mp
from multiprocessing import resource_tracker, shared_memory
def add(value, array, k):
    for i in range(100):
        with value.get_lock(): value.value += 1
        array[k] += i
        array[3] += 1
def put(queue, k):
    for i in range(20): queue.put((k, i))
def square(x): return x * x
def stir(name, k):
    s = shared_memory.SharedMemory(name=name)
    for i in range(200): s.buf[(i * 7 + k) % 64] = (s.buf[(i * 3) % 64] + 1) % 256
    s.close()
def run(target, args):
    processes = [mp.Process(target=target, args=a) for a in args]
    for p in processes: p.start()
    return processes
mp.set_start_method('fork')
value, array = mp.Value('i', 0), mp.Array('l', 4, lock=False)
for p in run(add, [(value, array, k) for k in range(3)]): p.join()
assert value.value == 300
print(list(array))
queue = mp.Queue()
processes = run(put, [(queue, k) for k in range(3)])
print([queue.get() for _ in range(60)])
for p in processes: p.join()
with mp.Pool(3) as pool:
    print(pool.map(square, range(30)), list(pool.imap_unordered(square, range(50))))
s = shared_memory.SharedMemory(create=True, size=64)
for p in run(stir, [(s.name, k) for k in range(2)]): p.join()
print(bytes(s.buf[:64]).hex())
s.close(); s.unlink()
# A process that looks after shared memory; it ends with this one, but later.
resource_tracker._resource_tracker._stop()
"#;
    Case::new(
        "python_multiprocessing",
        &["/usr/bin/python3", "-c", script],
    )
    .needs(&["/usr/bin/python3"])
    .varies()
    .timeout(120)
    .run_in_modes(1);
}
