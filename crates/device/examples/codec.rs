//! Prices of a page, in microseconds: `cargo run --release -p userswap-device --example codec`.

#[path = "../tests/content/mod.rs"]
mod content;

use std::hint::black_box;
use std::time::{Duration, Instant};

use content::{Numbers, PAGE, Page};
use userswap_core::device::{Device, Usage};
use userswap_device::{Codec, Ram, Zram, ZramOptions};

const PAGES: usize = 8192;
const ROUNDS: usize = 9;

fn main() {
    let mut numbers = Numbers::new(42);
    let sets: [(&str, Vec<Page>); 6] = [
        ("zero", vec![[0; PAGE]; PAGES]),
        ("same", vec![[0x5a; PAGE]; PAGES]),
        (
            "text",
            (0..PAGES).map(|_| content::text(&mut numbers)).collect(),
        ),
        (
            "heap",
            (0..PAGES).map(|_| content::heap(&mut numbers)).collect(),
        ),
        ("mixed", content::mixed(PAGES)),
        (
            "random",
            (0..PAGES).map(|_| content::random(&mut numbers)).collect(),
        ),
    ];
    println!("median of {ROUNDS} rounds over {PAGES} pages, us per page");
    println!(
        "{:<14} {:<7} {:>7} {:>9} {:>9} {:>7} {:>8} {:>9}",
        "device", "pages", "write", "overwrite", "read", "discard", "ratio", "overhead"
    );
    for (set, pages) in &sets {
        raw_lz4(set, pages);
        measure(
            "ram",
            set,
            pages,
            &Ram::new(PAGES as u64, Duration::ZERO).unwrap(),
        );
        for acceleration in [1, 2, 4, 8] {
            let options = ZramOptions {
                lz4_acceleration: acceleration,
                ..ZramOptions::default()
            };
            measure(
                &format!("lz4:{acceleration}"),
                set,
                pages,
                &Zram::new(PAGES as u64, options).unwrap(),
            );
        }
        for level in [2, -1] {
            let options = ZramOptions {
                codec: Codec::Zstd,
                zstd_level: level,
                ..ZramOptions::default()
            };
            measure(
                &format!("zstd:{level}"),
                set,
                pages,
                &Zram::new(PAGES as u64, options).unwrap(),
            );
        }
    }
    for threads in [1, 2, 4] {
        together(threads, &sets[4].1);
    }
}

/// The library alone, for comparison.
fn raw_lz4(set: &str, pages: &[Page]) {
    let mut packed = vec![[0; 2 * PAGE]; pages.len()];
    let mut lens = vec![0; pages.len()];
    let mut back = [0; PAGE];
    let (mut write, mut read) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        write.push(time(|index| {
            // SAFETY: both lengths are those of the buffers.
            lens[index] = unsafe {
                lz4_sys::LZ4_compress_default(
                    pages[index].as_ptr().cast(),
                    packed[index].as_mut_ptr().cast(),
                    4096,
                    8192,
                )
            };
        }));
        read.push(time(|index| {
            // SAFETY: both lengths are those of the buffers.
            black_box(unsafe {
                lz4_sys::LZ4_decompress_safe(
                    packed[index].as_ptr().cast(),
                    back.as_mut_ptr().cast(),
                    lens[index],
                    4096,
                )
            });
        }));
    }
    let total: i32 = lens.iter().sum();
    let ratio = (pages.len() * PAGE) as f64 / f64::from(total);
    println!(
        "{:<14} {set:<7} {:>7.3} {:>9} {:>9.3} {:>7} {ratio:>8.2}",
        "(lz4 alone)",
        median(write),
        "",
        median(read),
        ""
    );
}

fn measure(name: &str, set: &str, pages: &[Page], device: &dyn Device) {
    let (mut write, mut overwrite, mut read, mut discard) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut page = [0; PAGE];
    let mut usage = Usage::default();
    for _ in 0..ROUNDS {
        write.push(time(|slot| {
            device.write(slot as u64, &pages[slot]).unwrap()
        }));
        overwrite.push(time(|slot| {
            device.write(slot as u64, &pages[slot]).unwrap()
        }));
        read.push(time(|slot| {
            let _ = black_box(device.read(slot as u64, &mut page).unwrap());
        }));
        usage = device.usage();
        discard.push(time(|slot| device.discard(slot as u64)));
    }
    print!(
        "{name:<14} {set:<7} {:>7.3} {:>9.3} {:>9.3} {:>7.3}",
        median(write),
        median(overwrite),
        median(read),
        median(discard)
    );
    if usage.stored_bytes == 0 {
        return println!();
    }
    let stored = usage.stored_bytes as f64;
    let ratio = (pages.len() * PAGE) as f64 / stored;
    let overhead = 100.0 * (usage.memory_bytes as f64 / stored - 1.0);
    println!(" {ratio:>8.2} {overhead:>8.2}%");
}

/// Threads that write, read and discard slots of their own.
fn together(threads: usize, pages: &[Page]) {
    let device = Zram::new(PAGES as u64, ZramOptions::default()).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let device = &device;
            scope.spawn(move || {
                let mut page = [0; PAGE];
                for _ in 0..ROUNDS {
                    for slot in (thread..PAGES).step_by(threads) {
                        device.write(slot as u64, &pages[slot]).unwrap();
                        let _ = device.read(slot as u64, &mut page).unwrap();
                    }
                    for slot in (thread..PAGES).step_by(threads) {
                        device.discard(slot as u64);
                    }
                }
            });
        }
    });
    let each = start.elapsed().as_secs_f64() * 1e6 / (PAGES * ROUNDS) as f64;
    println!(
        "{threads} threads, mixed, write + read + discard: {each:.3} us per page of wall time"
    );
}

fn time(mut work: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    for index in 0..PAGES {
        work(index);
    }
    start.elapsed().as_secs_f64() * 1e6 / PAGES as f64
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
