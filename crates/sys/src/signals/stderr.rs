//! A line on standard error, from inside a signal handler.

use std::fmt::{self, Write};

use crate::Errno;

/// Long enough for a message that names a page, a device and a reason; short enough for any stack.
const CAPACITY: usize = 512;

/// What a cut line ends with.
const CUT: &[u8] = b"...";

/// Writes one line to standard error, with write(2) and without allocating; a newline is added.
///
/// *Fault path*, if the arguments' own formatting is (numbers, strings and [`Errno`]'s raw number are). A line too long is
/// cut. Failure to write is not reported: there is nowhere to report it to.
pub fn stderr_line(message: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; CAPACITY],
        len: 0,
        cut: false,
    };
    // Only a `Display` of the caller's can fail; what it wrote until then is shown.
    let _ = line.write_fmt(message);
    let mut rest = line.finish();
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stderr(), rest) {
            Ok(0) => return,
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

struct Line {
    bytes: [u8; CAPACITY],
    len: usize,
    cut: bool,
}

impl Line {
    /// Room for text: what the ending may take is kept free.
    const ROOM: usize = CAPACITY - CUT.len() - 1;

    fn finish(&mut self) -> &[u8] {
        let ending: &[&[u8]] = if self.cut { &[CUT, b"\n"] } else { &[b"\n"] };
        for part in ending {
            self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
        }
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(Self::ROOM - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        self.cut |= fits < text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: fmt::Arguments<'_>) -> Vec<u8> {
        let mut line = Line {
            bytes: [0; CAPACITY],
            len: 0,
            cut: false,
        };
        line.write_fmt(message).expect("formats");
        line.finish().to_vec()
    }

    #[test]
    fn ends_with_a_newline_and_is_cut_when_too_long() {
        assert_eq!(
            line(format_args!("page {:#x}: {}", 4096, -5)),
            b"page 0x1000: -5\n"
        );
        let exact = "x".repeat(Line::ROOM);
        assert_eq!(
            line(format_args!("{exact}")),
            format!("{exact}\n").into_bytes()
        );
        let cut = line(format_args!("{exact}{}", 1));
        assert_eq!(cut, format!("{exact}...\n").into_bytes());
        assert_eq!(cut.len(), CAPACITY);
    }
}
