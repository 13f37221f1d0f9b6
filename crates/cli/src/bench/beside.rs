//! Pages that are written out without pause while something else is measured.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::content::Content;
use crate::interrupt;
use crate::memory::Memory;
use crate::size::PAGE;

/// Pages that are filled and written out together: one cluster.
const PAGES: usize = 64;

/// How often it is looked whether writing out has begun.
const LOOK: Duration = Duration::from_micros(100);

/// Does `work` while one thread drops `pages`, fills them anew and writes them out, again and again. Returns how many pages a
/// second that was, too; afterwards they hold what they are filled with.
pub(super) fn write_out_beside<R>(
    memory: &Memory,
    pages: Range<usize>,
    content: &Content,
    work: impl FnOnce() -> anyhow::Result<R>,
) -> anyhow::Result<(R, f64)> {
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let write = || {
        let starts = pages.clone().step_by(PAGES).cycle();
        for start in starts.take_while(|_| !stop.load(Ordering::Relaxed)) {
            let cluster = start..pages.end.min(start + PAGES);
            fill_anew(memory, cluster.clone(), content)?;
            memory.page_out(cluster.start * PAGE..cluster.end * PAGE)?;
            written.fetch_add(cluster.len() as u64, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let writer = scope.spawn(write);
        let _stop = Stop(&stop);
        while written.load(Ordering::Relaxed) == 0 && !writer.is_finished() {
            interrupt::check()?;
            thread::sleep(LOOK);
        }
        let (start, before) = (Instant::now(), written.load(Ordering::Relaxed));
        let done = work()?;
        let pages = written.load(Ordering::Relaxed) - before;
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")?;
        Ok((done, pages as f64 / seconds))
    })
}

/// Also when the work fails: the scope waits for the writer.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fills `pages` without reading what they held.
fn fill_anew(memory: &Memory, pages: Range<usize>, content: &Content) -> anyhow::Result<()> {
    memory.discard(pages.start * PAGE..pages.end * PAGE)?;
    let mut bytes = [0; PAGE];
    for page in pages {
        content.write(page, &mut bytes);
        for (index, word) in bytes.as_chunks().0.iter().enumerate() {
            let value = u64::from_ne_bytes(*word);
            memory.word(page, index).store(value, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::phases;
    use crate::content::Kind;

    #[test]
    fn pages_are_written_out_meanwhile_and_keep_their_content() {
        let mut memory = Memory::kernel(300 * PAGE).expect("mapping");
        let content = Content::new(Kind::Mixed, 1);
        memory.bytes()[..PAGE].fill(7);
        let wait = || {
            thread::sleep(Duration::from_millis(20));
            Ok(5)
        };
        let (done, rate) =
            write_out_beside(&memory, 100..300, &content, wait).expect("written out");
        assert!(done == 5 && rate > 0.0, "{rate} pages a second");
        assert_eq!(memory.touch(0), 7);
        content.fill(0, &mut memory.bytes()[..100 * PAGE]);
        assert_eq!(
            phases::wrong_pages(&mut memory, &content).expect("checked"),
            0
        );
    }
}
