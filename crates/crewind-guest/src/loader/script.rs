//! The first line of a script, as the kernel's `load_script` reads it. Pure.

/// How much of a file the kernel looks at (`BINPRM_BUF_SIZE`).
pub(super) const HEAD_LEN: usize = 256;

/// What a `#!` line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shebang {
    /// Path of the interpreter.
    pub interp: Vec<u8>,
    /// The rest of the line as one argument.
    pub arg: Option<Vec<u8>>,
}

fn blank(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

/// Reads the `#!` line of a file's first bytes, zero-filled to [`HEAD_LEN`]. `None` when it names nothing.
pub(super) fn parse(head: &[u8; HEAD_LEN]) -> Option<Shebang> {
    let line = head.strip_prefix(b"#!")?;
    let ends = |b: &u8| blank(*b) || *b == 0;
    // The last byte of the buffer is never looked at.
    let line = &line[..line.len() - 1];
    let line = match line.iter().position(|&b| b == b'\n') {
        Some(n) => &line[..n],
        None => {
            // Without anything that ends the path, it may have been cut.
            let start = line.iter().position(|&b| !blank(b))?;
            line[start..].iter().position(ends)?;
            line
        }
    };
    let trimmed = line.len() - line.iter().rev().take_while(|&&b| blank(b)).count();
    let line = &line[..trimmed];
    let line = &line[line.iter().position(|&b| !blank(b))?..];
    let end = line.iter().position(ends).unwrap_or(line.len());
    let (interp, rest) = line.split_at(end);
    if interp.is_empty() {
        return None;
    }
    let arg = match rest.first() {
        Some(&b) if b != 0 => {
            let rest = &rest[rest.iter().position(|&b| !blank(b)).unwrap_or(rest.len())..];
            let arg = &rest[..rest.iter().position(|&b| b == 0).unwrap_or(rest.len())];
            (!rest.is_empty()).then(|| arg.to_vec())
        }
        _ => None,
    };
    Some(Shebang {
        interp: interp.to_vec(),
        arg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &[u8]) -> Option<(String, Option<String>)> {
        let mut head = [0; HEAD_LEN];
        let n = text.len().min(HEAD_LEN);
        head[..n].copy_from_slice(&text[..n]);
        let s = |b: Vec<u8>| String::from_utf8(b).unwrap();
        parse(&head).map(|l| (s(l.interp), l.arg.map(s)))
    }

    #[test]
    fn lines() {
        assert_eq!(p(b"#!/bin/sh\n"), Some(("/bin/sh".into(), None)));
        assert_eq!(
            p(b"#! \t/bin/sh  -e -x \t\nrest"),
            Some(("/bin/sh".into(), Some("-e -x".into())))
        );
        assert_eq!(p(b"#!/bin/sh"), Some(("/bin/sh".into(), None)));
        assert_eq!(
            p(b"#!/bin/sh -x"),
            Some(("/bin/sh".into(), Some("-x".into())))
        );
        assert_eq!(p(b"#!\n/bin/sh"), None);
        assert_eq!(p(b"#!   \n"), None);
        assert_eq!(p(b"#!"), None);
        assert_eq!(p(b"echo"), None);
    }

    #[test]
    fn long_lines() {
        let mut long = b"#!/".to_vec();
        long.extend([b'a'; 300]);
        assert_eq!(p(&long), None);
        // A path that ends within the buffer is whole, whatever follows.
        long[100] = b' ';
        let (interp, arg) = p(&long).unwrap();
        assert_eq!(interp.len(), 98);
        assert_eq!(arg.unwrap().len(), 255 - 101);
        assert_eq!(p(&[&b"#!"[..], &[b' '; 300]].concat()), None);
    }
}
