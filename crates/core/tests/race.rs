//! The race of the protocol's section 1, schedule by schedule, over software memory: lost when
//! unpinned, never when direct or cached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use userswap_core::device::Properties;
use userswap_core::script::{Point, Script, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::{Way, bug};

/// Stops the first read of the device at a point until the test lets it go on.
struct Stop {
    reached: Receiver<()>,
    go_on: SyncSender<()>,
}

fn stop_first_read(at: Point) -> (Script, Stop) {
    let (reached_tx, reached) = sync_channel(1);
    let (go_on, go_on_rx) = sync_channel::<()>(1);
    let go_on_rx = std::sync::Mutex::new(go_on_rx);
    let first = AtomicBool::new(true);
    let script: Script = Box::new(move |point, _| {
        if point == at && first.swap(false, Ordering::SeqCst) {
            reached_tx.send(()).expect("the test waits");
            go_on_rx
                .lock()
                .expect("one reader")
                .recv()
                .expect("the test goes on");
        }
        Ok(())
    });
    (script, Stop { reached, go_on })
}

fn setup(way: Way, discards: bool, script: Script) -> (SoftSwap, SoftMm) {
    let swap = soft::swap(8, way);
    let properties = Properties {
        synchronous: true,
        stable_pages: false,
        discards,
    };
    // One slot: a freed slot is the next to be handed out.
    swap.add_area(Box::new(ScriptedDevice::new(1, properties, script)));
    let mm = soft::mm(&swap, 1, Some(1));
    (swap, mm)
}

fn store(swap: &SoftSwap, mm: &SoftMm, value: u8) {
    soft::access(swap, mm, 0, |page| page.fill(value)).expect("the page can be accessed");
}

fn load(swap: &SoftSwap, mm: &SoftMm) -> u8 {
    soft::access(swap, mm, 0, |page| page[0]).expect("the page can be accessed")
}

fn page_out(swap: &SoftSwap, mm: &SoftMm) {
    let staged = swap.stage(mm, 0, 1).expect("the page can be staged");
    let done = swap.write_back(staged.block, staged.mask);
    assert_eq!(done.written | done.dropped, 1, "{done:?}");
    use userswap_core::space::Frames;
    swap.frames().release(staged.block, 1);
}

/// T0 faults and is stopped in its read; T1 faults, stores v1 and pages out again; T0 goes on.
/// Returns what is in the page afterwards, v1 being 2, and whether T1 had to wait for T0.
fn race(way: Way, discards: bool, at: Point) -> (u8, bool) {
    let (script, stop) = stop_first_read(at);
    let (swap, mm) = setup(way, discards, script);
    store(&swap, &mm, 1);
    page_out(&swap, &mm);
    let done = Arc::new(AtomicBool::new(false));
    let waited = thread::scope(|scope| {
        let t0 = scope.spawn(|| load(&swap, &mm));
        stop.reached.recv().expect("T0 reads");
        let t1 = scope.spawn(|| {
            store(&swap, &mm, 2);
            page_out(&swap, &mm);
            done.store(true, Ordering::SeqCst);
        });
        let patience = if way == Way::Unpinned { 10_000 } else { 50 };
        for _ in 0..patience {
            if done.load(Ordering::SeqCst) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let waited = !done.load(Ordering::SeqCst);
        stop.go_on.send(()).expect("T0 waits");
        t0.join().expect("T0");
        t1.join().expect("T1");
        waited
    });
    (load(&swap, &mm), waited)
}

#[test]
fn v1_stale_copy() {
    assert_eq!(
        race(Way::Unpinned, false, Point::AfterRead),
        (1, false),
        "v1 is lost"
    );
    for way in [Way::Direct, Way::Cached] {
        assert_eq!(race(way, false, Point::AfterRead), (2, true), "{way:?}");
    }
    assert_eq!(bug::count(), 0);
}

#[test]
fn v2_discard() {
    // T0 reads after T1 has freed the slot and before it is written again: the script stops T0
    // before the read, and T1 at its write.
    let run = |way: Way| {
        let (script, stop) = stop_first_read(Point::BeforeRead);
        let (reached_tx, reached) = sync_channel::<()>(1);
        let (go_on, go_on_rx) = sync_channel::<()>(1);
        let go_on_rx = std::sync::Mutex::new(go_on_rx);
        let writes = std::sync::atomic::AtomicU32::new(0);
        let both: Script = Box::new(move |point, slot| {
            if point == Point::BeforeWrite && writes.fetch_add(1, Ordering::SeqCst) == 1 {
                reached_tx.send(()).expect("the test waits");
                go_on_rx
                    .lock()
                    .expect("one writer")
                    .recv()
                    .expect("the test goes on");
            }
            script(point, slot)
        });
        let (swap, mm) = setup(way, true, both);
        store(&swap, &mm, 1);
        page_out(&swap, &mm);
        thread::scope(|scope| {
            let t0 = scope.spawn(|| load(&swap, &mm));
            stop.reached.recv().expect("T0 reads");
            let t1 = scope.spawn(|| {
                // Not even modified: read, and paged out again.
                load(&swap, &mm);
                page_out(&swap, &mm);
            });
            if way == Way::Unpinned {
                reached.recv().expect("T1 writes");
                stop.go_on.send(()).expect("T0 waits");
                t0.join().expect("T0");
                go_on.send(()).expect("T1 waits");
            } else {
                assert!(
                    reached.recv_timeout(Duration::from_millis(50)).is_err(),
                    "T1 got past the pin"
                );
                stop.go_on.send(()).expect("T0 waits");
                t0.join().expect("T0");
                reached.recv().expect("T1 writes");
                go_on.send(()).expect("T1 waits");
            }
            t1.join().expect("T1");
        });
        load(&swap, &mm)
    };
    assert_eq!(run(Way::Unpinned), 0, "zeros are mapped");
    assert_eq!(run(Way::Direct), 1);
    assert_eq!(run(Way::Cached), 1);
    assert_eq!(bug::count(), 0);
}

#[test]
fn v4_mixed_ways_on_a_shared_entry() {
    use userswap_core::space::Frames;
    // T0 starts while the entry is its own, so it goes direct; then fork shares the entry, T1 goes
    // through the cache, the child leaves, and the slot is reused.
    let run = |way: Way| {
        let (script, stop) = stop_first_read(Point::AfterRead);
        let (swap, mm) = setup(way, false, script);
        store(&swap, &mm, 1);
        page_out(&swap, &mm);
        let child = soft::mm(&swap, 1, Some(1));
        thread::scope(|scope| {
            let t0 = scope.spawn(|| load(&swap, &mm));
            stop.reached.recv().expect("T0 reads");
            let (staged, copied) = swap.fork_chunk(&mm, &child, 0);
            assert_eq!(
                (staged, copied),
                (None, Ok(0)),
                "the swapped page is shared"
            );
            let t1 = scope.spawn(|| {
                store(&swap, &mm, 2);
                assert_eq!(swap.discard(&child, 0, 1).pinned, 0);
                let staged = swap.stage(&mm, 0, 1);
                if let Ok(staged) = staged {
                    let _ = swap.write_back(staged.block, staged.mask);
                    swap.frames().release(staged.block, 1);
                }
            });
            if way == Way::Unpinned {
                t1.join().expect("T1 needs nobody");
                stop.go_on.send(()).expect("T0 waits");
            } else {
                thread::sleep(Duration::from_millis(50));
                assert!(!t1.is_finished(), "T1 got past the pin");
                stop.go_on.send(()).expect("T0 waits");
                t1.join().expect("T1");
            }
            t0.join().expect("T0");
        });
        load(&swap, &mm)
    };
    assert_eq!(run(Way::Unpinned), 1, "v1 is lost");
    assert_eq!(run(Way::Direct), 2);
    assert_eq!(run(Way::Cached), 2);
    assert_eq!(bug::count(), 0);
}
