//! Real programs: what people run.

use std::fmt::Write as _;

use crate::harness::{Case, exited};

/// A script with pipes, subshells, traps and job control.
const BASH: &str = r#"
set -u
echo one two three | tr ' ' '\n' | sort -r | { read -r first; echo "first: $first"; wc -l; }
( cd /; pwd; exit 3 ); echo "subshell: $?"
trap 'echo trapped USR1' USR1
trap 'echo at exit' EXIT
kill -USR1 $$
f() { local i s=0; for ((i = 0; i < 2000; i++)); do ((s += i * i % 7)); done; echo "sum $s"; }
f
x=$(f | sed 's/sum/SUM/'); echo "$x"
sleep 0.05 & pid=$!
wait $pid; echo "waited: $?"
( sleep 5 & echo $! > child.pid; wait ) & 
job=$!
while [ ! -s child.pid ]; do sleep 0.01; done
kill "$(cat child.pid)"; wait $job; echo "killed: $?"
set -m
sleep 10 & sleep 0.2; kill -STOP %1; kill -CONT %1; kill %1; wait %1; echo "job: $?"
set +m
cat <<EOT | while read -r line; do echo "[$line]"; done
here
document
EOT
diff <(seq 1 5) <(seq 2 6); echo "diff: $?"
declare -A map=([a]=1 [b]=2); for k in a b; do echo "$k=${map[$k]}"; done
[[ "abc123" =~ ^([a-z]+)([0-9]+)$ ]] && echo "${BASH_REMATCH[2]}"
printf '%s\n' {1..3}{a,b} | paste -sd,
echo data > file; exec 5<> file; read -r back <&5; echo "$back"; exec 5>&-
mkfifo fifo; (echo through a fifo > fifo) & cat fifo; wait
coproc bc_like { while read -r l; do echo $((l)); done; }
echo '6 * 7' >&"${bc_like[1]}"; read -r answer <&"${bc_like[0]}"; echo "$answer"
exec {bc_like[1]}>&-
false || true && ! false; echo $?
"#;

#[test]
fn bash_script() {
    Case::bash("bash_script", BASH).run();
}

#[test]
fn dash_script() {
    let script = r#"i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo $i; ls /etc/passwd | cat; (exit 4); echo $?; trap 'echo bye' EXIT"#;
    Case::new("dash_script", &["sh", "-c", script]).run();
}

#[test]
fn ls_usr_include() {
    Case::new("ls_usr_include", &["ls", "-lR", "/usr/include"]).run();
}

#[test]
fn coreutils() {
    let script = r#"
        mkdir -p a/b/c; seq 1 1000 > a/numbers; cp -r a copy; ln -s a/numbers link; ln a/numbers hard
        sort -rn a/numbers | head -3; md5sum a/numbers; sha256sum link | cut -c1-16; wc a/numbers
        cut -c1 a/numbers | sort | uniq -c; tac a/numbers | tail -2; split -l 300 a/numbers part.; ls part.*
        join <(seq 1 5) <(seq 3 8); comm -12 <(seq 1 5) <(seq 3 8); fold -w 7 <<< "folded text here"; tr a-z A-Z <<< upper
        stat -c '%s %F %a' a/numbers link a; du -s --apparent-size -B1 a/numbers; chmod 751 a; stat -c %a a
        touch -d '2020-01-02 03:04:05' old; date -r old +%F; test old -ot a/numbers && echo older; dd if=/dev/zero of=zeros bs=1k count=64 2>/dev/null; od -An -tx1 -N4 zeros
        mv hard moved; rm -r copy; truncate -s 10 zeros; stat -c %s zeros; realpath --relative-to=. link; basename /a/b.c .c
        find . -type f | sort; grep -c 7 a/numbers; sed -n '10,12p;s/5/five/p' a/numbers | head -5; awk '{s+=$1} END {print s}' a/numbers
        xargs -n 100 < a/numbers | wc -l; tee x y < link | cksum; cmp x y && echo same; base64 <<< coded; nl <<< line; expr 6 \* 7; env -i A=1 env; id -u; printf '%05.2f\n' 3.14159
        timeout 0.05 sleep 5; echo $?; nohup true; nice -n 5 true; mktemp -d tmp.XXXX | cut -c1-4; readlink link; paste <(seq 3) <(seq 4 6); shuf -i 1-100 --random-source=a/numbers | head -2; factor 1234567; numfmt --to=iec 1000000
    "#;
    Case::bash("coreutils", script).run();
}

#[test]
fn find_and_grep() {
    let script = "find /usr/include -name '*.h' -newer /etc/passwd | wc -l; find /usr/include -name 's*.h' -size +4k -exec wc -l {} + | tail -1; grep -rlE 'struct [a-z]+stat' /usr/include/x86_64-linux-gnu | sort | md5sum";
    Case::bash("find_and_grep", script).run();
}

#[test]
fn python_modules() {
    let case = Case::new(
        "python_modules",
        &[
            "/usr/bin/python3",
            "-m",
            "test",
            "test_json",
            "test_dict",
            "test_re",
        ],
    );
    case.needs(&["/usr/bin/python3", "/usr/lib/python3.11/test/test_re.py"])
        .varies()
        .timeout(240)
        .run();
}

#[test]
fn python_subprocess() {
    let case = Case::new(
        "python_subprocess",
        &["/usr/bin/python3", "-m", "test", "test_subprocess"],
    );
    case.needs(&[
        "/usr/bin/python3",
        "/usr/lib/python3.11/test/test_subprocess.py",
    ])
    .varies()
    .timeout(300)
    .run();
}

#[test]
fn python_script() {
    let script = r#"
import collections, datetime, hashlib, json, os, random, re, struct, subprocess, sys, tempfile, zlib
random.seed(7)
data = [random.random() for _ in range(20000)]
print(sum(sorted(data)[:100]), hashlib.sha256(repr(data).encode()).hexdigest())
print(collections.Counter(re.findall(r'\w', open(__file__).read())).most_common(3))
print(len(zlib.compress(json.dumps(data).encode())), struct.pack('<dI', 1.5, 7).hex())
class A:
    def __init__(self): self.d = {i: [i] * 3 for i in range(1000)}
    def gen(self): yield from (v for k, v in self.d.items() if k % 7 == 0)
print(sum(map(sum, A().gen())))
try: 1 / 0
except ZeroDivisionError as e: print(type(e).__name__, e)
print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout.strip())
with tempfile.TemporaryDirectory() as d:
    open(os.path.join(d, 'f'), 'w').write('x' * 10000); print(os.stat(os.path.join(d, 'f')).st_size)
pid = os.fork()
if pid == 0: os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(datetime.datetime(2024, 2, 29).isoformat(), 2 ** 1000 % 10 ** 9, sys.getrecursionlimit())
"#;
    Case::new("python_script", &["/usr/bin/python3", "script.py"])
        .needs(&["/usr/bin/python3"])
        .file("script.py", script)
        .run();
}

#[test]
fn python_time_and_pids() {
    let script = "import os, time, random, uuid, threading; print(os.getpid(), time.time(), time.perf_counter_ns(), random.random(), uuid.uuid4(), hash('x'), id(object()))";
    Case::new("python_time_and_pids", &["/usr/bin/python3", "-c", script])
        .needs(&["/usr/bin/python3"])
        .varies()
        .run();
}

#[test]
fn perl_script() {
    let script = r#"
        use strict; use POSIX qw(floor :sys_wait_h);
        my %h; $h{$_ % 97} += $_ * $_ for 1 .. 50000; print join(',', map { "$_=$h{$_}" } (sort { $a <=> $b } keys %h)[0 .. 4]), "\n";
        my $t = join ' ', map { sprintf '%x', $_ * 7919 % 65536 } 1 .. 5000; my $n = () = $t =~ /\b[a-f]\w*/g; print "$n\n"; $t =~ s/(\d)([a-f])/$2$1/g; print unpack('%32C*', $t), "\n";
        my $pid = fork; if (!$pid) { print "child\n"; exit 7 } waitpid $pid, 0; print $? >> 8, "\n"; print `echo backtick`; $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; select undef, undef, undef, 10; }; print $@;
        open my $f, '<', '/etc/passwd' or die; my @l = <$f>; print scalar(@l) > 3 ? "lines\n" : "few\n"; local $SIG{USR1} = sub { print "usr1\n" }; kill USR1 => $$; print floor(-2.5), "\n"; printf "%.10f\n", atan2(1, 1) * 4;
    "#;
    Case::new("perl_script", &["perl", "-e", script])
        .env("PERL_HASH_SEED", "0")
        .needs(&["perl"])
        .run();
}

#[test]
fn lua_script() {
    let script = r#"
local t = {} for i = 1, 20000 do t[i] = (i * 7919) % 10007 end table.sort(t) print(t[1], t[10000], #t)
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end print(fib(22))
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) print(co(), co(), co())
print(pcall(error, "caught")) print(string.format("%5.2f %q", math.pi, "quoted\n")) print(("x"):rep(10):gsub("x", "y"))
local f = assert(io.open("out", "w")) f:write("written") f:close() print(io.open("out"):read("a")) print(os.execute("exit 3"))
collectgarbage() for k, v in pairs({10, 20, 30}) do io.write(k, v, " ") end print()
"#;
    Case::new("lua_script", &["lua5.4", "script.lua"])
        .needs(&["lua5.4"])
        .file("script.lua", script)
        .run();
}

#[test]
fn luajit_loop() {
    let script = r#"
local ffi = require("ffi") ffi.cdef[[ int getppid(void); typedef struct { double x, y; } point; ]]
local s = 0 for i = 1, 5e6 do s = (s * 31 + i) % 1000003 end print(s)
local p = ffi.new("point[1000]") for r = 1, 200 do for i = 0, 999 do p[i].x = p[i].x + i * r; p[i].y = p[i].x * 0.5 end end print(p[999].x, p[7].y)
local t = {} for i = 1, 1e5 do t[i % 100 + 1] = tostring(i):reverse() end print(table.concat(t, ","):sub(1, 50)) for i = 1, 1000 do assert(ffi.C.getppid() > 0) end
local function mandel(cx, cy) local x, y = 0, 0 for i = 1, 200 do x, y = x * x - y * y + cx, 2 * x * y + cy if x * x + y * y > 4 then return i end end return 0 end
local sum = 0 for i = -100, 100 do for j = -100, 100 do sum = sum + mandel(i / 60, j / 60) end end print(sum)
"#;
    Case::new("luajit_loop", &["luajit", "loop.lua"])
        .needs(&["luajit"])
        .file("loop.lua", script)
        .run();
}

#[test]
fn sqlite_100k_rows() {
    let sql = "PRAGMA page_size=4096; CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL); BEGIN;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100000) INSERT INTO t SELECT i, 'name' || (i * 7919 % 100003), i * 0.5 FROM n; COMMIT;
        CREATE INDEX byname ON t(name); SELECT count(*), sum(value), min(name) FROM t; UPDATE t SET value = value + 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 0; VACUUM; SELECT count(*), sum(value) FROM t WHERE name LIKE 'name1%';
        PRAGMA integrity_check; SELECT name FROM t ORDER BY name DESC LIMIT 3;";
    Case::new("sqlite_100k_rows", &["sqlite3", "test.db"])
        .needs(&["sqlite3"])
        .stdin(sql.as_bytes())
        .timeout(120)
        .run();
}

#[test]
fn git_repository() {
    let script = r#"
        export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z' GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@d GIT_PAGER=cat
        git init -q -b main repo; cd repo; for d in a b c; do mkdir $d; for i in $(seq 1 40); do seq $i $((i * 20)) > $d/file$i; done; done
        git add .; git commit -q -m first; sed -i 's/7/seven/' a/*; git diff --stat | tail -1; git commit -qam second; git checkout -q -b side HEAD~1; echo x > b/new; git add b; git commit -qm third
        git merge -q main -m merged; git log --oneline --graph --all; git status --short; git gc -q; git fsck 2>&1 | head -3; git rev-parse HEAD; git ls-files | wc -l; git blame a/file3 | tail -1; git archive HEAD | md5sum; git clone -q . ../copy; git -C ../copy log -1 --format=%H
    "#;
    Case::bash("git_repository", script)
        .needs(&["git"])
        .timeout(120)
        .run();
}

/// A C file of about 2,000 lines.
fn long_c_file() -> String {
    let mut text = String::from(
        "#include <stdio.h>\n#include <string.h>\nstruct item { int key; double value; char name[16]; };\n",
    );
    for i in 0..195 {
        let _ = write!(
            text,
            "static int work{i}(struct item *items, int n) {{\n    int sum = {i};\n    for (int k = 0; k < n; k++) {{\n        \
             items[k].key = items[k].key * {} + k;\n        if (items[k].key % {} == 0)\n            sum ^= items[k].key;\n        \
             items[k].value += sum * 0.5;\n    }}\n    return sum;\n}}\n",
            i * 2 + 3,
            i % 11 + 2
        );
    }
    text.push_str("int main(void) {\n    struct item items[50];\n    memset(items, 1, sizeof items);\n    unsigned sum = 0;\n");
    for i in 0..195 {
        let _ = writeln!(text, "    sum = sum * 31 + (unsigned)work{i}(items, 50);");
    }
    text.push_str("    printf(\"%u\\n\", sum);\n    return 0;\n}\n");
    text
}

#[test]
fn gcc_process_tree() {
    let script = "gcc -O2 -Wall -o program long.c && ./program && gcc -O2 -S -o - long.c | md5sum && size program | tail -1 && strip program && md5sum < program";
    Case::bash("gcc_process_tree", script)
        .needs(&["gcc"])
        .file("long.c", long_c_file())
        .timeout(180)
        .run();
}

#[test]
fn make_project() {
    let makefile = "OBJ = $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: $(OBJ)\n\tgcc -o $@ $(OBJ)\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\nclean:\n\trm -f program $(OBJ)\n";
    let mut case = Case::bash("make_project", "make -s && ./program && make && make clean")
        .needs(&["make", "gcc"])
        .file("Makefile", makefile);
    let mut calls = String::new();
    let mut declarations = String::new();
    for i in 0..6 {
        case = case.file(
            &format!("f{i}.c"),
            format!("int f{i}(int x) {{ return x * {i} + 1; }}\n"),
        );
        let _ = write!(declarations, "int f{i}(int);");
        let _ = write!(calls, "x = f{i}(x);");
    }
    let main = format!(
        "#include <stdio.h>\n{declarations}\nint main(void) {{ int x = 3; {calls} printf(\"%d\\n\", x); }}\n"
    );
    case.file("main.c", main).timeout(120).run();
}

#[test]
fn tar_xz_md5sum() {
    Case::bash(
        "tar_xz_md5sum",
        "set -o pipefail; tar --sort=name -cf - -C /usr/include linux | xz -1 -T1 | md5sum",
    )
    .needs(&["tar", "xz"])
    .timeout(180)
    .run();
}

#[test]
fn compressors() {
    let script = r#"
        seq 1 200000 > data
        for c in "gzip -n" "bzip2" "xz -T1" "zstd -q --single-thread"; do $c -c < data > packed; set -- $c; $1 -dc < packed | cmp - data && echo "$1 $(wc -c < packed)"; done
    "#;
    Case::bash("compressors", script)
        .needs(&["gzip", "bzip2", "xz", "zstd"])
        .timeout(180)
        .run();
}

#[test]
fn openssl_genrsa() {
    Case::new("openssl_genrsa", &["openssl", "genrsa", "2048"])
        .needs(&["openssl"])
        .varies()
        .run();
}

#[test]
fn openssl_speed() {
    let case = Case::new(
        "openssl_speed",
        &[
            "openssl",
            "speed",
            "-seconds",
            "1",
            "-bytes",
            "1024",
            "sha256",
            "aes-128-cbc",
        ],
    );
    case.needs(&["openssl"]).varies().run();
}

#[test]
fn openssl_commands() {
    let script = "seq 1 5000 > data; openssl dgst -sha512 data; openssl enc -aes-256-cbc -pbkdf2 -S 0011223344556677 -pass pass:x -in data | openssl dgst -md5; openssl rand -hex 0; openssl prime 1000003";
    Case::bash("openssl_commands", script)
        .needs(&["openssl"])
        .run();
}

#[test]
fn ssh_keygen() {
    Case::bash(
        "ssh_keygen",
        "ssh-keygen -q -t ed25519 -N '' -C test -f key && cat key.pub && ssh-keygen -lf key",
    )
    .needs(&["ssh-keygen"])
    .varies()
    .run();
}

#[test]
fn vim_batch() {
    let script =
        "vim -Nu NONE -es -c '%s/line/LINE/g' -c '3d' -c 'normal Goadded' -c 'wq' text; cat text";
    Case::bash("vim_batch", script)
        .needs(&["vim"])
        .file("text", "line 1\nline 2\nline 3\nline 4\n")
        .run();
}

#[test]
fn curl_from_loopback_server() {
    // Only the client is recorded: the server is gone when it is replayed.
    let server = r#"
import http.server, os, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (self.path * 2000).encode(); self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.HTTPServer(('127.0.0.1', 0), Handler); print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start(); sys.stdin.read()
"#;
    use std::io::BufRead;
    let Some(python) = crate::harness::find_program("python3") else {
        return crate::harness::skip("curl_from_loopback_server", "python3 is not installed");
    };
    let mut server = std::process::Command::new(python)
        .args(["-c", server])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 can be started");
    let mut port = String::new();
    std::io::BufReader::new(server.stdout.take().expect("stdout is a pipe"))
        .read_line(&mut port)
        .expect("the server tells its port");
    let url = format!("http://127.0.0.1:{}/page", port.trim());
    let script = format!(
        "curl -s {url} | md5sum; curl -s -o page -w '%{{http_code}} %{{size_download}}\\n' {url}; cut -c1-20 page"
    );
    let result = std::panic::catch_unwind(|| {
        Case::bash("curl_from_loopback_server", &script)
            .needs(&["curl"])
            .run()
    });
    // The server is this test's own child.
    let _ = server.kill();
    let _ = server.wait();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn http_server_recorded() {
    // Server and client in one recorded tree, with a thread in the server.
    let script = r#"
python3 -c '
import http.server, threading, urllib.request, socketserver
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for i in range(5): print(len(urllib.request.urlopen("http://127.0.0.1:%d/file" % server.server_port).read()))
server.shutdown()' 2>/dev/null
"#;
    Case::bash("http_server_recorded", script)
        .needs(&["python3"])
        .file("file", "x".repeat(100_000))
        .varies()
        .run();
}

#[test]
fn interactive_input() {
    Case::bash(
        "interactive_input",
        "while read -r line; do echo \"got $line\"; done; echo end",
    )
    .stdin(b"first\nsecond\nlast without end")
    .run();
}

#[test]
fn false_and_missing() {
    Case::new("false_exits_1", &["false"])
        .expect(Some(exited(1)))
        .run();
    Case::bash("missing_in_shell", "/no/such/program; exit $?")
        .expect(Some(exited(127)))
        .run();
}

#[test]
fn input_changes_after_recording() {
    // The harness removes the files; this one reads what is outside of its directory too.
    let path = crate::harness::scratch().join("changing-input");
    let _ = std::fs::create_dir_all(crate::harness::scratch());
    std::fs::write(&path, "as recorded\n").expect("the scratch directory can be written");
    let place = crate::harness::Place::new("input_changes_after_recording");
    let limit = std::time::Duration::from_secs(30);
    let run = |words: &[&str]| {
        crate::harness::run(place.command(words, &place.work, &[]), b"", limit).expect("it ends")
    };
    let shown = path.to_str().expect("paths are UTF-8");
    let recorded = run(&[crate::harness::CREWIND, "record", "--", "cat", shown]);
    std::fs::write(&path, "changed afterwards, and longer\n")
        .expect("the scratch directory can be written");
    let replayed = run(&[crate::harness::CREWIND, "replay"]);
    assert_eq!(
        String::from_utf8_lossy(&replayed.stdout),
        "as recorded\n",
        "{}",
        crate::harness::show(&replayed)
    );
    assert_eq!(recorded.stdout, replayed.stdout);
    place.clear();
}
