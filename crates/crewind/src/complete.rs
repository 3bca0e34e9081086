//! Completion scripts and manual pages, generated from the definition of the command line.

use std::io::Write;
use std::path::Path;

use crate::cli;
use crate::fail::{Error, Result};

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "crewind", &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|e| cli::output_error(&e))?;
    Ok(0)
}

/// Prints the manual page, or writes one for each command.
pub fn man(directory: Option<&Path>) -> Result<i32> {
    match directory {
        Some(directory) => clap_mangen::generate_to(cli::command(), directory).map_err(|e| {
            Error::usage(format!(
                "cannot write manual pages to {}: {e}",
                directory.display()
            ))
        })?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(cli::command())
                .render(&mut page)
                .map_err(|e| Error::internal(format!("cannot render the manual page: {e}")))?;
            std::io::stdout()
                .write_all(&page)
                .map_err(|e| cli::output_error(&e))?;
        }
    }
    Ok(0)
}
