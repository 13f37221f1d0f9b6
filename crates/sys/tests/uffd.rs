//! userfaultfd operations on real memory, without signals.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{complete, fill, holds, inline_or_skip, open_or_skip, pages};
use userswap_sys::uffd::{Doorbell, Event, Open, Outcome, RawEvent, Uffd};
use userswap_sys::{Errno, PAGE_SIZE, host};

/// Registers a whole mapping.
fn register(uffd: &Uffd, mapping: &userswap_sys::mapping::Mapping) {
    // SAFETY: the test owns the mapping and fills what it touches.
    unsafe { uffd.register(mapping.base(), mapping.len()) }.expect("register");
}

#[test]
fn copy_fills_and_refuses_what_is_there() {
    let Some(uffd) = inline_or_skip("copy_fills_and_refuses_what_is_there") else {
        return;
    };
    let (home, source) = (pages(8), pages(8));
    (0..8).for_each(|page| fill(&source, page, 1));
    register(&uffd, &home);
    let at = |page: usize| home.base() + page * PAGE_SIZE;
    // SAFETY: missing pages of the test's own, filled from its own.
    unsafe {
        complete(uffd.copy(at(2), source.base() + 2 * PAGE_SIZE, 2 * PAGE_SIZE));
        // Page 2 is there: refused at once. From page 0: two pages, then the reason on asking again.
        assert_eq!(
            uffd.copy(at(2), source.base(), PAGE_SIZE).outcome(),
            Outcome::Refused(Errno::EXIST)
        );
        assert_eq!(
            uffd.copy(at(0), source.base(), 4 * PAGE_SIZE).outcome(),
            Outcome::Partial(2 * PAGE_SIZE)
        );
        complete(uffd.copy(at(4), source.base() + 4 * PAGE_SIZE, 4 * PAGE_SIZE));
        // Not registered here; not aligned.
        assert_eq!(
            uffd.copy(source.base(), at(0), PAGE_SIZE).outcome(),
            Outcome::Refused(Errno::NOENT)
        );
        assert_eq!(
            uffd.copy(at(0) + 1, source.base(), PAGE_SIZE).outcome(),
            Outcome::Refused(Errno::INVAL)
        );
    }
    assert!((0..8).all(|page| holds(&home, page, page, 1)));
    assert_eq!(home.resident_pages(0..home.len()), Ok(8));
    assert_eq!(
        host::resident_bytes(home.base(), home.len()),
        Ok(8 * PAGE_SIZE as u64)
    );
}

#[test]
fn zeropage_maps_zeros() {
    let Some(uffd) = inline_or_skip("zeropage_maps_zeros") else {
        return;
    };
    let home = pages(4);
    fill(&home, 3, 9);
    register(&uffd, &home);
    // SAFETY: missing pages of the test's own.
    let progress = unsafe { uffd.zeropage(home.base(), home.len()) };
    assert_eq!(progress.outcome(), Outcome::Partial(3 * PAGE_SIZE));
    for offset in 0..3 * PAGE_SIZE {
        // SAFETY: inside the mapping; these pages are present now.
        assert_eq!(unsafe { home.as_ptr().add(offset).read_volatile() }, 0);
    }
    assert!(holds(&home, 3, 3, 9));
}

#[test]
fn pages_move_out_and_back_whole() {
    let Some(uffd) = inline_or_skip("pages_move_out_and_back_whole") else {
        return;
    };
    const PAGES: usize = 64;
    let (home, staging) = (pages(PAGES), pages(PAGES));
    (0..PAGES).for_each(|page| fill(&home, page, 2));
    register(&uffd, &home);
    register(&uffd, &staging);
    for run in [1, 8, 64] {
        let len = run * PAGE_SIZE;
        for offset in (0..home.len()).step_by(len) {
            // SAFETY: the test's own ranges; nobody touches them meanwhile.
            complete(unsafe {
                uffd.move_pages(staging.base() + offset, home.base() + offset, len, false)
            });
        }
        assert_eq!(home.resident_pages(0..home.len()), Ok(0));
        assert!((0..PAGES).all(|page| holds(&staging, page, page, 2)));
        for offset in (0..home.len()).step_by(len) {
            // SAFETY: as above.
            complete(unsafe {
                uffd.move_pages(home.base() + offset, staging.base() + offset, len, false)
            });
        }
        assert_eq!(staging.resident_pages(0..staging.len()), Ok(0));
        assert!((0..PAGES).all(|page| holds(&home, page, page, 2)));
    }
}

#[test]
fn move_stops_at_holes_unless_told_to_pass_over_them() {
    let Some(uffd) = inline_or_skip("move_stops_at_holes_unless_told_to_pass_over_them") else {
        return;
    };
    let (home, staging) = (pages(4), pages(4));
    [0, 1, 3].into_iter().for_each(|page| fill(&home, page, 3));
    register(&uffd, &home);
    register(&uffd, &staging);
    let len = home.len();
    // SAFETY: the test's own ranges; nobody touches them meanwhile.
    unsafe {
        let out = uffd.move_pages(staging.base(), home.base(), len, false);
        assert_eq!(out.outcome(), Outcome::Partial(2 * PAGE_SIZE));
        let at = 2 * PAGE_SIZE;
        let hole = uffd.move_pages(staging.base() + at, home.base() + at, at, false);
        assert_eq!(hole.outcome(), Outcome::Refused(Errno::NOENT));
        complete(uffd.move_pages(staging.base() + at, home.base() + at, at, true));
    }
    assert_eq!(home.resident_pages(0..len), Ok(0));
    assert_eq!(staging.resident_pages(0..len), Ok(3));
    assert!(
        [0, 1, 3]
            .into_iter()
            .all(|page| holds(&staging, page, page, 3))
    );
}

#[test]
fn move_refuses_a_page_that_is_there() {
    let Some(uffd) = inline_or_skip("move_refuses_a_page_that_is_there") else {
        return;
    };
    let (home, staging) = (pages(1), pages(1));
    fill(&home, 0, 4);
    fill(&staging, 0, 5);
    register(&uffd, &home);
    // SAFETY: the test's own ranges.
    let refused = unsafe { uffd.move_pages(home.base(), staging.base(), PAGE_SIZE, false) };
    assert_eq!(refused.outcome(), Outcome::Refused(Errno::EXIST));
    assert!(holds(&home, 0, 0, 4) && holds(&staging, 0, 0, 5));
}

#[test]
fn moves_from_one_huge_page_at_once_say_what_they_did() {
    const HUGE: usize = 2 << 20;
    const RUN: usize = 64;
    let test = "moves_from_one_huge_page_at_once_say_what_they_did";
    let (Some(uffd), Some(staging_uffd)) = (inline_or_skip(test), inline_or_skip(test)) else {
        return;
    };
    for round in 0..30 {
        let reserved = pages(2 * HUGE / PAGE_SIZE);
        let first = (reserved.base().next_multiple_of(HUGE) - reserved.base()) / PAGE_SIZE;
        // SAFETY: the test's own memory; advice changes nothing that it holds.
        unsafe {
            libc::madvise(
                reserved.as_ptr().cast(),
                reserved.len(),
                libc::MADV_HUGEPAGE,
            )
        };
        (0..HUGE / PAGE_SIZE).for_each(|page| fill(&reserved, first + page, round));
        let staging = pages(4 * RUN);
        register(&uffd, &reserved);
        register(&staging_uffd, &staging);
        let start = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            for part in 0..4 {
                let (reserved, staging, staging_uffd) = (&reserved, &staging, &staging_uffd);
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut moved = 0;
                    while moved < RUN {
                        let from = reserved.base() + (first + part * RUN + moved) * PAGE_SIZE;
                        let to = staging.base() + (part * RUN + moved) * PAGE_SIZE;
                        let bytes = (RUN - moved) * PAGE_SIZE;
                        // SAFETY: the test's own ranges, which nobody else uses.
                        match unsafe { staging_uffd.move_pages(to, from, bytes, false) }.outcome() {
                            Outcome::Complete => moved = RUN,
                            Outcome::Partial(bytes) => moved += bytes / PAGE_SIZE,
                            // Other threads have the huge page in hand.
                            Outcome::Again | Outcome::Refused(Errno::BUSY) => thread::yield_now(),
                            Outcome::Refused(errno) => panic!("{errno} after {moved} pages"),
                        }
                    }
                });
            }
        });
        assert!((0..4 * RUN).all(|page| holds(&staging, page, first + page, round)));
    }
}

#[test]
fn registering_belongs_to_one_and_ends() {
    let Some(uffd) = inline_or_skip("registering_belongs_to_one_and_ends") else {
        return;
    };
    let other = Uffd::open(Open {
        sigbus: true,
        ..Open::default()
    })
    .expect("a second one");
    let home = pages(2);
    register(&uffd, &home);
    register(&uffd, &home);
    // SAFETY: the test's own range.
    unsafe {
        assert_eq!(other.register(home.base(), home.len()), Err(Errno::BUSY));
        uffd.unregister(home.base(), home.len())
            .expect("unregister");
        other.register(home.base(), home.len()).expect("free again");
        other
            .unregister(home.base(), home.len())
            .expect("unregister");
        assert_eq!(uffd.register(home.base() + 1, PAGE_SIZE), Err(Errno::INVAL));
    }
    // Native again: a first touch finds zeros.
    // SAFETY: the test's own page.
    assert_eq!(unsafe { home.as_ptr().read_volatile() }, 0);
}

#[test]
fn poison_makes_system_calls_fail_until_discarded() {
    let Some(uffd) = inline_or_skip("poison_makes_system_calls_fail_until_discarded") else {
        return;
    };
    if !uffd.features().poison() {
        return common::skip(
            "poison_makes_system_calls_fail_until_discarded",
            "no UFFDIO_POISON",
        );
    }
    let home = pages(2);
    fill(&home, 1, 6);
    register(&uffd, &home);
    complete(uffd.poison(home.base(), PAGE_SIZE));
    assert_eq!(
        uffd.poison(home.base() + PAGE_SIZE, PAGE_SIZE).outcome(),
        Outcome::Refused(Errno::EXIST)
    );
    assert_eq!(write_byte(home.base()), Err(Errno::FAULT));
    home.discard(0..PAGE_SIZE).expect("discard");
    // SAFETY: the test's own page, missing again.
    complete(unsafe { uffd.zeropage(home.base(), PAGE_SIZE) });
    assert_eq!(write_byte(home.base()), Ok(()));
    assert!(holds(&home, 1, 1, 6));
}

/// Has the kernel read one byte at `addr`, by writing it into a pipe.
fn write_byte(addr: usize) -> Result<(), Errno> {
    let (_reader, writer) = std::io::pipe().expect("pipe");
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel checks the address itself; the byte is one of the test's own mapping.
    let written = unsafe { libc::write(writer.as_raw_fd(), addr as *const _, 1) };
    if written == 1 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("errno"))
    }
}

/// Serves faults in `home` by copying from `source` until the bell rings; returns the faults seen.
fn serve(
    uffd: &Uffd,
    bell: &Doorbell,
    home: usize,
    source: usize,
) -> Vec<userswap_sys::uffd::PageFault> {
    let mut seen = Vec::new();
    let mut buffer = [RawEvent::default(); 4];
    while uffd.wait(bell).expect("wait") {
        for event in uffd.read_events(&mut buffer).expect("read") {
            let Event::PageFault(fault) = event.decode() else {
                panic!("{event:?}")
            };
            let offset = (fault.address - home) & !(PAGE_SIZE - 1);
            // SAFETY: a missing page of the test's own, filled from its own.
            let progress = unsafe { uffd.copy(home + offset, source + offset, PAGE_SIZE) };
            if progress.outcome() == Outcome::Refused(Errno::EXIST) {
                uffd.wake(home + offset, PAGE_SIZE).expect("wake");
            } else {
                complete(progress);
            }
            seen.push(fault);
        }
    }
    seen
}

#[test]
fn events_name_page_access_and_thread() {
    let want = Open {
        nonblock: true,
        ..Open::default()
    };
    let Some(uffd) = open_or_skip("events_name_page_access_and_thread", want) else {
        return;
    };
    let (home, source) = (pages(4), pages(4));
    (0..4).for_each(|page| fill(&source, page, 8));
    register(&uffd, &home);
    assert_eq!(
        uffd.read_events(&mut [RawEvent::default(); 2])
            .expect("nothing")
            .len(),
        0
    );
    let bell = Doorbell::new().expect("bell");
    let (seen, toucher) = thread::scope(|scope| {
        let server = scope.spawn(|| serve(&uffd, &bell, home.base(), source.base()));
        let toucher = scope.spawn(|| {
            // SAFETY: the test's own pages, served by the other thread.
            unsafe {
                home.as_ptr().add(PAGE_SIZE + 40).read_volatile();
                home.as_ptr().add(2 * PAGE_SIZE).write_volatile(77);
            }
            rustix::thread::gettid().as_raw_nonzero().get() as u32
        });
        let toucher = toucher.join().expect("toucher");
        bell.ring();
        (server.join().expect("server"), toucher)
    });
    let facts: Vec<_> = seen
        .iter()
        .map(|f| ((f.address - home.base()) / PAGE_SIZE, f.write))
        .collect();
    assert_eq!(facts, [(1, false), (2, true)]);
    assert!(uffd.enabled().thread_id());
    assert!(
        seen.iter().all(|fault| fault.thread == toucher),
        "{seen:?}, not {toucher}"
    );
    assert!(holds(&home, 1, 1, 8));
}

#[test]
fn a_privileged_one_serves_system_calls_and_an_unprivileged_one_does_not() {
    const NAME: &str = "a_privileged_one_serves_system_calls_and_an_unprivileged_one_does_not";
    for kernel_faults in [false, true] {
        let want = Open {
            kernel_faults,
            nonblock: true,
            ..Open::default()
        };
        let Some(uffd) = open_or_skip(NAME, want) else {
            return;
        };
        let (home, source) = (pages(1), pages(1));
        fill(&source, 0, 1);
        register(&uffd, &home);
        let bell = Doorbell::new().expect("bell");
        let (written, seen) = thread::scope(|scope| {
            let server = scope.spawn(|| serve(&uffd, &bell, home.base(), source.base()));
            let written = write_byte(home.base());
            bell.ring();
            (written, server.join().expect("server"))
        });
        let expected = if kernel_faults {
            (Ok(()), 1)
        } else {
            (Err(Errno::FAULT), 0)
        };
        assert_eq!(
            (written, seen.len()),
            expected,
            "kernel_faults: {kernel_faults}"
        );
    }
}

#[test]
fn wake_lets_a_waiter_look_again() {
    let want = Open {
        nonblock: true,
        ..Open::default()
    };
    let Some(uffd) = open_or_skip("wake_lets_a_waiter_look_again", want) else {
        return;
    };
    let home = pages(1);
    register(&uffd, &home);
    let (bell, done) = (Doorbell::new().expect("bell"), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the test's own page, served below.
            unsafe { home.as_ptr().read_volatile() };
            done.store(true, Ordering::SeqCst);
        });
        let mut buffer = [RawEvent::default(); 4];
        // Woken while the page is still missing, the thread faults again: a second event.
        for _ in 0..2 {
            assert!(uffd.wait(&bell).expect("wait"));
            assert_eq!(uffd.read_events(&mut buffer).expect("read").len(), 1);
            assert!(!done.load(Ordering::SeqCst));
            uffd.wake(home.base(), PAGE_SIZE).expect("wake");
        }
        // SAFETY: the test's own page, missing.
        complete(unsafe { uffd.zeropage(home.base(), PAGE_SIZE) });
    });
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn the_probe_agrees_with_the_features() {
    let Some(uffd) = open_or_skip("the_probe_agrees_with_the_features", Open::default()) else {
        return;
    };
    match host::probe_move() {
        Ok(()) => assert!(uffd.features().move_pages()),
        Err(error) => assert!(!uffd.features().move_pages(), "{error}"),
    }
}
