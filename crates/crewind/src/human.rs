//! Numbers as people read and write them.

use std::io::IsTerminal;
use std::time::Duration;

/// A size: `17 B`, `4.2 KiB`, `1.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut shown = "B";
    for unit in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        shown = unit;
    }
    format!("{value:.1} {shown}")
}

/// A duration: `85 ms`, `3.2 s`, `4m05s`, `2h07m`, `3d`.
pub fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0 => format!("{} ms", d.as_millis()),
        1..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

/// How long ago a moment was, in whole units: `now`, `5m`, `3h`, `2d`, `6w`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => "now".into(),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        86400..1_209_600 => format!("{}d", seconds / 86400),
        _ => format!("{}w", seconds / 604_800),
    }
}

/// Parses an age: a number and one of s, m, h, d, w.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no age; write a number and s, m, h, d or w, as in 12h");
    let unit = text.chars().last().ok_or_else(bad)?;
    let number: u64 = text
        .strip_suffix(unit)
        .and_then(|n| n.parse().ok())
        .ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        'w' => 604_800,
        _ => return Err(bad()),
    };
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(bad)
}

/// An argument as one would type it in a shell.
pub fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c) || !c.is_ascii();
    if !argument.is_empty() && argument.chars().all(|c| plain(c) && !c.is_control()) {
        return argument.to_owned();
    }
    if argument.chars().any(char::is_control) {
        return format!("$'{}'", argument.escape_debug());
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Cuts a line to the terminal's width; output into files and pipes stays whole.
pub fn fit(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let mut cut: String = line.chars().take(width.saturating_sub(1)).collect();
            cut.push('…');
            cut
        }
        _ => line.to_owned(),
    }
}

/// Width of the terminal behind standard output, if it is one.
pub fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request fills a winsize, which `size` is.
    let known = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) } == 0;
    (known && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Columns with two spaces between; those in `right` are aligned to the right, the last one is not padded.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|r| r.get(c))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, &width))| match () {
                    () if right.contains(&i) => format!("{cell:>width$}"),
                    () if i + 1 == columns => cell.clone(),
                    () => format!("{cell:<width$}"),
                })
                .collect();
            cells.join("  ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(Duration::from_millis(85)), "85 ms");
        assert_eq!(duration(Duration::from_secs(245)), "4m05s");
        assert_eq!(age(59), "now");
        assert_eq!(age(3 * 86400), "3d");
    }

    #[test]
    fn ages_are_understood() {
        assert_eq!(parse_age("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_age("0s"), Ok(Duration::ZERO));
        for bad in [
            "",
            "d",
            "7",
            "7y",
            "-1d",
            "99999999999999999999w",
            "9999999999999999999w",
            "7é",
        ] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_can_be_pasted() {
        assert_eq!(quote("a/b.c"), "a/b.c");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("a\nb"), r"$'a\nb'");
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".into(), "10".into(), "x".into()],
            vec!["bbb".into(), "5".into(), "yy".into()],
        ];
        assert_eq!(table(&rows, &[1]), ["a    10  x", "bbb   5  yy"]);
    }
}
