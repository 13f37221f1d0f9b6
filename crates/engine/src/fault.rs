//! Where faults come in: the SIGBUS handler (inline mode) and the handler threads (thread mode).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use userswap_core::FaultError;
use userswap_core::device::PAGE_SIZE;
use userswap_core::space::SpaceError;
use userswap_sys::mapping::{can_be_read, can_be_written, present_mask};
use userswap_sys::signals::{self, Fault, Stack, Verdict, stderr_line};
use userswap_sys::uffd::{Doorbell, Event, Outcome, PageFault, RawEvent};
use userswap_sys::{Errno, cpu, inject};

use crate::Error;
use crate::moving::Admitted;
use crate::registry;
use crate::resolve::Resolved;
use crate::shared::{RegionMemory, Shared};
use crate::spec::FaultMode;
use crate::thread;
use crate::windows;

/// How often waking a thread is tried.
const WAKE_TRIES: usize = 64;

/// Without its handlers a program would wait for ever.
const UNREADABLE: &str = "faults cannot be read any more";

/// Installs the process's SIGBUS handler, once. `stack`: where it runs.
pub(crate) fn install(stack: Stack) -> Result<(), Error> {
    // SAFETY: `on_sigbus` allocates nothing and takes only locks of the engine, which no thread holds
    // while it touches a region or while it can be interrupted by a handler that does.
    unsafe { signals::install_on(on_sigbus, stack) }
        .map(drop)
        .map_err(|errno| Error::System {
            what: "install the SIGBUS handler",
            errno,
        })
}

fn on_sigbus(fault: Fault<'_>) -> Verdict {
    // SAFETY: this thread is accessing the address right now.
    let Some(region) = (unsafe { registry::find(fault.address()) }) else {
        return windows::find(fault.address()).map_or(Verdict::NotOurs, |window| {
            on_sigbus_in_window(window, fault)
        });
    };
    let page = (fault.address() - region.mm.space.base()) / PAGE_SIZE;
    if region.shared.mode() == FaultMode::Thread {
        deliver_failed(region, page, fault);
        return Verdict::Handled;
    }
    if fault.code() == Fault::CODE_FAILED_MEMORY {
        // The machine lost the page: nothing of ours can bring it back.
        return Verdict::NotOurs;
    }
    match region.resolve(page, fault.write().unwrap_or(true)) {
        Ok(_) => Verdict::Handled,
        Err(error) => {
            report(region, page, error);
            Verdict::NotOurs
        }
    }
}

fn on_sigbus_in_window(window: &RegionMemory, fault: Fault<'_>) -> Verdict {
    let shared = &window.shared;
    let page = (fault.address() - window.mm.space.base()) / PAGE_SIZE;
    // Where faults came so once, one may have been under way when that ended.
    let inline = shared.first_mode == FaultMode::Inline;
    if !inline && !shared.inline_for_now.load(Ordering::Relaxed) {
        // A page that could not be brought in, or a signal that has nothing to do with us.
        return Verdict::NotOurs;
    }
    if fault.stack_pointer().is_some_and(windows::is_taken) {
        // It went well this time, on another stack; a signal that the program awaits would not find room.
        shared.stack_taken.store(true, Ordering::Relaxed);
    }
    if bring_in(window, page, fault.write().unwrap_or(true)) || is_the_systems_again(fault) {
        Verdict::Handled
    } else {
        Verdict::NotOurs
    }
}

/// Whether the page was left to the system while the signal was under way, and the access will find it there.
fn is_the_systems_again(fault: Fault<'_>) -> bool {
    let at = fault.address();
    let is_there = match fault.write() {
        // A hole of a file can be read where the file system has no room for it to be written.
        Some(true) => can_be_written,
        _ => can_be_read,
    };
    fault.code() == Fault::CODE_ADDRESS && !windows::is_taken(at) && is_there(at)
}

/// Brings `page` in, in this thread, whose signals are blocked. `false`: there is no such page, or it cannot be had.
pub(crate) fn bring_in(window: &RegionMemory, page: usize, write: bool) -> bool {
    let inside = window.shared.moving.enter_in_fault();
    let resolved = if inside.is_some() {
        window.resolve(page, write)
    } else {
        window.resolve_alone(page, write)
    };
    match resolved {
        Ok(Resolved::Mapped) => true,
        Ok(Resolved::ByOthers) => {
            window.note_gone(page);
            true
        }
        // The program has changed the mapping meanwhile: the access shall look again.
        Err(error) if is_unmapped(error) => window.is_swapped(page),
        Err(error) => {
            report(window, page, error);
            false
        }
    }
}

/// Whether the system has nothing of ours mapped where a page should come.
fn is_unmapped(error: FaultError) -> bool {
    let FaultError::Space(SpaceError::Refused(errno)) = error else {
        return false;
    };
    [Errno::NOENT, Errno::INVAL, Errno::SRCH]
        .iter()
        .any(|unmapped| unmapped.raw_os_error() == errno)
}

/// A handler thread could not bring `page` and marked it: the access that met the mark fails, the next
/// one shall ask again.
fn deliver_failed(region: &RegionMemory, page: usize, fault: Fault<'_>) {
    let this = page + 1;
    // Relaxed: only who meets the mark cares, and a wrong guess costs one more try.
    if region.delivered.swap(this, Ordering::Relaxed) != this {
        signals::chain(fault);
        if !signals::is_in_force() {
            // This is the end: the access repeats and meets the mark, not a handler thread once more.
            return;
        }
    }
    // Either the program's handler has returned, or it jumped away the last time.
    region.delivered.store(0, Ordering::Relaxed);
    forget_poison(region, page);
}

fn forget_poison(region: &RegionMemory, page: usize) {
    let RegionMemory { mm, shared, .. } = region;
    // With the chunk locked and the page missing, nothing but the mark is there to lose.
    shared
        .swap
        .while_missing(mm, page, || mm.space.forget_poison(page));
}

/// Says why an access gets SIGBUS.
fn report(region: &RegionMemory, page: usize, error: FaultError) {
    let address = region.mm.space.base() + page * PAGE_SIZE;
    let swap = &region.shared.swap;
    let area = match error {
        FaultError::Read { entry, .. } => swap.area_number(entry.area()),
        FaultError::Space(_) | FaultError::NoFrames => swap.open_areas().next(),
    };
    let device = area.map_or("no device", |area| area.device().name());
    stderr_line(format_args!(
        "userswap: page {address:#x} (offset {:#x} of its region) cannot be brought in from {device}: {error}; \
         the access gets SIGBUS, the page stays where it is",
        page * PAGE_SIZE,
    ));
}

/// The handler threads of thread mode.
pub(crate) struct Handlers {
    bell: Arc<Doorbell>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Handlers {
    /// Starts one handler pinned to each CPU: a fault is best handled where it happened.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        let cpus = cpu::allowed().into_iter();
        let (handlers, failed) = Self::on(shared, make_bell(shared)?, cpus);
        match failed {
            None => Ok(handlers),
            Some(error) => {
                // Those that were started end at once.
                shared.start.open();
                Err(error)
            }
        }
    }

    /// The same for some CPUs, up to the first that cannot be had.
    pub(crate) fn on(
        shared: &Arc<Shared>,
        bell: Arc<Doorbell>,
        cpus: impl Iterator<Item = usize>,
    ) -> (Self, Option<Error>) {
        let mut handlers = Self {
            bell,
            threads: Vec::new(),
        };
        for cpu in cpus {
            let (shared, bell) = (Arc::clone(shared), Arc::clone(&handlers.bell));
            let thread = thread::start(
                format!("userswap-{cpu}"),
                "start a fault handler thread",
                move || {
                    shared.start.pass();
                    // A CPU that cannot be had only costs speed.
                    let _ = cpu::pin_to(cpu);
                    handle(&shared, &bell);
                },
            );
            match thread {
                Ok(thread) => handlers.threads.push(thread),
                Err(error) => return (handlers, Some(error)),
            }
        }
        (handlers, None)
    }
}

impl Handlers {
    /// How many threads they are.
    pub(crate) fn count(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.bell.ring();
        for thread in self.threads.drain(..) {
            thread.join().expect(thread::ENDS_WELL);
        }
    }
}

/// Makes what handler threads watch beside the userfaultfd.
pub(crate) fn make_bell(shared: &Shared) -> Result<Arc<Doorbell>, Error> {
    let bell = Doorbell::new().map_err(|errno| Error::System {
        what: "make an eventfd",
        errno,
    })?;
    // Relaxed: who closes descriptors comes later, by a lock of the program's.
    shared.bell_number.store(bell.number(), Ordering::Relaxed);
    Ok(Arc::new(bell))
}

/// What a handler thread does.
pub(crate) fn handle(shared: &Shared, bell: &Doorbell) {
    // One at a time: other handlers take what comes next meanwhile.
    let mut buffer = [RawEvent::default()];
    loop {
        match shared.uffd.wait(bell) {
            Ok(true) => {}
            Ok(false) => return,
            Err(errno) => fail_closed(UNREADABLE, errno),
        }
        match shared.uffd.read_events(&mut buffer) {
            Ok(events) => {
                for event in events {
                    if let Event::PageFault(fault) = event.decode() {
                        on_event(shared, fault);
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => fail_closed(UNREADABLE, errno),
        }
    }
}

/// Rather an end with a word than a thread that waits for ever.
fn fail_closed(what: &str, errno: Errno) -> ! {
    stderr_line(format_args!(
        "userswap: {what}: errno {}; ending the process",
        errno.raw_os_error()
    ));
    std::process::abort();
}

fn on_event(shared: &Shared, fault: PageFault) {
    if let Some(window) = windows::find(fault.address)
        && std::ptr::eq(&*window.shared, shared)
    {
        return on_event_in_window(window, fault);
    }
    // The thread that faulted need not wait for us any more: a signal, or somebody else's page, may have
    // let it go on, and its region may be going. So this holds on to the region, and holds off its end.
    let region = shared.region_at(fault.address);
    let inside = region.as_ref().and_then(|region| region.gate.enter());
    let (Some(region), Some(_inside)) = (&region, inside) else {
        // Whoever still waits there shall look again.
        wake(shared, fault.address & !(PAGE_SIZE - 1));
        return;
    };
    inject::pass(inject::Thread::Handler);
    let space = &region.mm.space;
    let page = (fault.address - space.base()) / PAGE_SIZE;
    match region.resolve(page, fault.write) {
        // Mapping the page has woken everybody.
        Ok(Resolved::Mapped) => {}
        Ok(Resolved::ByOthers) => wake(shared, space.address(page)),
        Err(error) => {
            report(region, page, error);
            shared.swap.while_missing(&region.mm, page, || {
                // Refused only where a mark is there already.
                let _ = space.uffd(page).poison(space.address(page), PAGE_SIZE);
            });
            wake(shared, space.address(page));
        }
    }
}

impl RegionMemory {
    /// A page of a window that is there by its word faults: the program may have dropped it in a way that nobody sees, or it is
    /// protected and nothing says so.
    fn note_gone(&self, page: usize) {
        let is_gone = || present_mask(self.mm.space.address(page), 1) == Some(0);
        if self.shared.swap.note_gone(&self.mm, page, is_gone) {
            self.shared.budget.uncharge(1);
        } else {
            // Rather a copy that nobody charges than a thread that comes back for ever.
            self.mm.space.unguard_unsaid(page);
        }
    }
}

fn on_event_in_window(window: &RegionMemory, fault: PageFault) {
    let shared = &window.shared;
    let (space, at) = (&window.mm.space, fault.address & !(PAGE_SIZE - 1));
    let page = (at - space.base()) / PAGE_SIZE;
    let admitted = shared.moving.admit(fault.thread, at);
    let resolved = match &admitted {
        Admitted::PutOff => return,
        Admitted::Inside(_) => window.resolve(page, fault.write),
        Admitted::ForCloser(_) => window.resolve_alone(page, fault.write),
    };
    match resolved {
        // Mapping the page has woken everybody.
        Ok(Resolved::Mapped) => return,
        Ok(Resolved::ByOthers) => window.note_gone(page),
        // Where the program has changed the mapping meanwhile the access shall look again.
        Err(error) => fail(window, page, error),
    }
    wake(shared, at);
}

/// Has accesses to `page` of a window, which cannot be brought in, get SIGBUS, and says why. One that is not
/// mapped any more needs none of that.
pub(crate) fn fail(window: &RegionMemory, page: usize, error: FaultError) {
    if is_unmapped(error) {
        return;
    }
    report(window, page, error);
    let at = window.mm.space.address(page);
    let marked = window.mm.space.uffd(page).poison(at, PAGE_SIZE);
    if !matches!(marked.outcome(), Outcome::Complete) {
        // The access would see what is not the page's content.
        stderr_line(format_args!(
            "userswap: the page at {at:#x} cannot be made to fail either; ending the process"
        ));
        std::process::abort();
    }
}

/// Lets whoever waits for the page at `address` look again. Nobody else may come to do it, so it has to succeed.
fn wake(shared: &Shared, address: usize) {
    let mut woken = shared.uffd.wake(address, PAGE_SIZE);
    for _ in 0..WAKE_TRIES {
        if woken.is_ok() {
            return;
        }
        std::thread::yield_now();
        woken = shared.uffd.wake(address, PAGE_SIZE);
    }
    if let Err(errno) = woken {
        fail_closed("a thread that waits for a page cannot be woken", errno);
    }
}
