//! What the hook costs a system call: `cargo run --release -p userswap-hook --example overhead`, after
//! `cargo build --release -p userswap-hook --example counting`.
//!
//! Runs itself once for each mode of the library `counting` and prints nanoseconds a call, the best of many rounds.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

const TURNS: usize = 8;
const ROUNDS: usize = 20;
const CALLS: u32 = 20_000;

fn main() {
    if std::env::var_os("OVERHEAD_MEASURE").is_some() {
        return measure();
    }
    let own = std::env::current_exe().expect("known");
    let library = own.with_file_name("libcounting.so");
    assert!(
        library.exists(),
        "{}: build the example `counting` first",
        library.display()
    );
    let modes = ["off", "idle", "unwanted", "noted", "count"];
    let mut best = [[f64::INFINITY; 3]; 5];
    // By turns, so that all of them see the quiet moments of the machine.
    for _ in 0..TURNS {
        for (mode, best) in modes.iter().zip(&mut best) {
            let mut command = Command::new(&own);
            command.env("OVERHEAD_MEASURE", "1").env("HOOK_MODE", mode);
            if *mode != "off" {
                command.env("LD_PRELOAD", &library);
            }
            let output = command.output().expect("runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            for (word, best) in text.split_whitespace().zip(best) {
                *best = best.min(word.parse().expect("a number"));
            }
        }
    }
    println!(
        "{:<10} {:>9} {:>9} {:>9}",
        "ns a call", "getppid", "read 1", "write 1"
    );
    for (mode, [getppid, read, write]) in modes.iter().zip(best) {
        println!("{mode:<10} {getppid:>9.1} {read:>9.1} {write:>9.1}");
    }
}

fn measure() {
    let open = |path: &std::ffi::CStr| {
        // SAFETY: a path with its end.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
        assert!(fd >= 0);
        fd
    };
    let (zero, null) = (open(c"/dev/zero"), open(c"/dev/null"));
    let mut byte = 0u8;
    let at = (&raw mut byte).cast();
    // SAFETY: plain calls, on one byte of ours.
    let times = unsafe {
        [
            best(|| i64::from(libc::getppid())),
            best(|| libc::read(zero, at, 1) as i64),
            best(|| libc::write(null, at, 1) as i64),
        ]
    };
    println!("{:>9.1} {:>9.1} {:>9.1}", times[0], times[1], times[2]);
}

fn best(call: impl Fn() -> i64) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..CALLS {
                black_box(call());
            }
            began.elapsed().as_nanos() as f64 / f64::from(CALLS)
        })
        .fold(f64::INFINITY, f64::min)
}
