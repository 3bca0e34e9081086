//! Recordings that begin when a function is first called: `record --start-at-function`.
//!
//! The function is looked for in each file that is mapped to be executed, by its symbols; files that are loaded later
//! count as well. Translated code stops in front of its first instruction, wherever it was found, until one thread gets
//! there: then the recording begins.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use object::read::ReadCache;
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

use super::{Phase, change_phase};
use crate::runtime::Runtime;
use crate::thread::Thread;

/// The function, and where it is.
pub(super) struct Function {
    name: String,
    /// Offsets of its first instruction in the files looked at, by device and inode.
    files: BTreeMap<(u64, u64), Vec<u64>>,
    /// Its addresses now.
    at: Vec<u64>,
}

impl Function {
    pub(super) fn new(name: &str) -> Function {
        Function {
            name: name.to_owned(),
            files: BTreeMap::new(),
            at: Vec::new(),
        }
    }
}

/// Whether a symbol is the function that somebody calls `wanted`: by its name as it is in the file, or demangled, with or
/// without parameters and hash.
fn is_called(symbol: &str, wanted: &str) -> bool {
    if symbol == wanted {
        return true;
    }
    if let Ok(rust) = rustc_demangle::try_demangle(symbol) {
        return rust.to_string() == wanted || format!("{rust:#}") == wanted;
    }
    let Ok(cpp) = cpp_demangle::Symbol::new(symbol) else {
        return false;
    };
    let Ok(full) = cpp.demangle() else {
        return false;
    };
    full == wanted || without_parameters(&full) == wanted
}

/// `a::b<int>::c(long, d) const` without what follows the name. Parentheses in a name (`operator()`, `(anonymous namespace)`)
/// belong to it.
fn without_parameters(full: &str) -> &str {
    let mut depth = 0i32;
    let mut from = None;
    for (i, c) in full.char_indices() {
        match c {
            '(' | '<' if depth > 0 => depth += 1,
            '(' => {
                let head = full.get(..i).unwrap_or(full);
                let tail = full.get(i..).unwrap_or("");
                let named = tail.starts_with("(anonymous namespace)")
                    || head.ends_with("operator") && tail.starts_with("()");
                if !named && from.is_none() {
                    from = Some(i);
                }
                depth += 1;
            }
            '<' if !full.get(..i).unwrap_or("").ends_with("operator") => depth += 1,
            ')' | '>' if depth > 0 => depth -= 1,
            _ => {}
        }
    }
    full.get(..from.unwrap_or(full.len())).unwrap_or(full)
}

/// Offsets in a file of the functions that are called `wanted`. None: it is no program or library.
fn offsets(path: &Path, wanted: &str) -> Option<Vec<u64>> {
    let cache = ReadCache::new(File::open(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let mut found = Vec::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        if symbol.kind() != SymbolKind::Text
            || symbol.is_undefined()
            || !symbol.name().is_ok_and(|n| is_called(n, wanted))
        {
            continue;
        }
        let address = symbol.address();
        let offset = file.segments().find_map(|s| {
            let (start, len) = s.file_range();
            let inside = address.checked_sub(s.address()).filter(|o| *o < len)?;
            start.checked_add(inside)
        });
        found.extend(offset.filter(|o| !found.contains(o)));
    }
    Some(found)
}

impl Runtime {
    /// Executable mappings may have changed: looks where the function is that a recording begins with.
    pub(crate) fn look_for_function(&mut self, th: Option<&mut Thread>) {
        let Some(state) = &mut self.deferred else {
            return;
        };
        let Some(function) = &mut state.function else {
            return;
        };
        let mut at = Vec::new();
        for (vma, map) in self.space.mapped_files().filter(|(v, _)| v.prot.exec) {
            let of_file = function
                .files
                .entry((map.id.dev, map.id.ino))
                .or_insert_with(|| {
                    let path = Path::new(OsStr::from_bytes(&map.id.path));
                    offsets(path, &function.name).unwrap_or_default()
                });
            let len = vma.end - vma.start;
            let inside = of_file
                .iter()
                .filter_map(|o| o.checked_sub(map.offset).filter(|o| *o < len));
            at.extend(inside.map(|o| vma.start + o));
        }
        at.sort_unstable();
        if at != function.at {
            function.at.clone_from(&at);
            self.stop_at(th, &at);
        }
    }

    /// Whether a recording is still to begin where a function is first called.
    pub(crate) fn looks_for_function(&self) -> bool {
        self.deferred.as_ref().is_some_and(|d| d.function.is_some())
    }

    /// Makes translated code stop in front of exactly these instructions.
    fn stop_at(&mut self, th: Option<&mut Thread>, at: &[u64]) {
        self.cache.set_breaks(at);
        if let (Some(par), Some(th)) = (self.par, th) {
            self.invalidate_everywhere(th, par, |c| c.set_breaks(at));
        }
    }

    /// Caches were made for threads that run in parallel; none of them runs yet.
    pub(crate) fn stop_in_new_caches(&mut self, th: &mut Thread) {
        let at = (self.deferred.as_ref())
            .and_then(|d| d.function.as_ref())
            .map(|f| f.at.clone());
        if let Some(at) = at.filter(|at| !at.is_empty()) {
            self.stop_at(Some(th), &at);
        }
    }

    /// A thread stands in front of an instruction that translated code stops at. True: it is to be stepped over.
    pub(crate) fn reached_function(&mut self, th: &mut Thread) -> bool {
        let Some(state) = &mut self.deferred else {
            return false;
        };
        let here = th.ctx().rip;
        if !(state.function.as_ref()).is_some_and(|f| f.at.contains(&here)) {
            // Another thread was faster.
            return false;
        }
        if self.in_vfork {
            // It runs in its parent's memory, which is the parent's to record.
            return true;
        }
        state.function = None;
        super::note_x87(th);
        if let Some(par) = self.par {
            par.stop_world(th);
        }
        self.stop_at(Some(th), &[]);
        // Somebody may have begun one from outside.
        let begun = change_phase(Phase::Off, Phase::Changing).then(|| self.begin_recording());
        if let Some(par) = self.par {
            par.resume_world();
        }
        match begun {
            Some(Ok(_)) => super::control::has_begun(),
            Some(Err(e)) => {
                crate::report::warn(format_args!("no recording begins: {}", e.why));
            }
            None => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them() {
        assert!(is_called("work", "work"));
        assert!(!is_called("work", "wor"));
        for wanted in [
            "_ZN5outer5inner4workEi",
            "outer::inner::work(int)",
            "outer::inner::work",
        ] {
            assert!(is_called("_ZN5outer5inner4workEi", wanted), "{wanted}");
        }
        assert!(!is_called("_ZN5outer5inner4workEi", "work"));
        let rust = "_ZN4core3fmt5write17h0123456789abcdefE";
        for wanted in [
            "core::fmt::write",
            "core::fmt::write::h0123456789abcdef",
            rust,
        ] {
            assert!(is_called(rust, wanted), "{wanted}");
        }
        assert!(is_called("main.(*Server).handle", "main.(*Server).handle"));
    }

    #[test]
    fn parameters_are_what_follows_the_name() {
        for (full, name) in [
            ("f", "f"),
            ("f(int, g(long))", "f"),
            ("a::b<c(int)>::d(long) const", "a::b<c(int)>::d"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
            ("a::operator()(int)", "a::operator()"),
            ("a::operator<(a const&)", "a::operator<"),
        ] {
            assert_eq!(without_parameters(full), name, "{full}");
        }
    }

    #[test]
    fn a_function_of_this_program() {
        let path = std::env::current_exe().expect("it runs");
        let found = offsets(&path, "crewind_guest_syscall").expect("it is a program");
        assert_eq!(found.len(), 1);
        assert_eq!(
            offsets(&path, "there_is_no_such_function"),
            Some(Vec::new())
        );
        assert_eq!(offsets(Path::new("/dev/null"), "f"), None);
    }
}
