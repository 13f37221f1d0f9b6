//! Very many threads.
//!
//! A thread of Rust's own has a signal stack beside its stack, each with a guard: four mappings, of which a process may
//! have 65,530 by default. It also ends the process when there is no mapping left for the signal stack. These have two
//! mappings, so that twice as many can be started, and starting one fails in the ordinary way.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Mappings that a thread takes: its stack and the guard below it.
pub(crate) const MAPPINGS_PER_THREAD: u64 = 2;

/// Threads that are joined before [`crowd`] returns. `'env` is what they may borrow; invariant, so that it cannot be
/// made shorter.
pub(crate) struct Crowd<'env> {
    stack: usize,
    threads: Vec<libc::pthread_t>,
    env: PhantomData<&'env mut &'env ()>,
}

type Work<'env> = Box<dyn FnOnce() + Send + 'env>;

/// Calls `start` to start threads, and returns when all of them have ended. `stack` is the size of a thread's stack.
pub(crate) fn crowd<'env, R>(stack: usize, start: impl FnOnce(&mut Crowd<'env>) -> R) -> R {
    // Joins in its drop, so also when `start` panics.
    let mut crowd = Crowd {
        stack,
        threads: Vec::new(),
        env: PhantomData,
    };
    start(&mut crowd)
}

impl<'env> Crowd<'env> {
    /// Starts one more. A panic in `work` ends the process.
    pub(crate) fn spawn(&mut self, work: impl FnOnce() + Send + 'env) -> io::Result<()> {
        let work: Work<'env> = Box::new(work);
        // A thin pointer for the thread's one argument.
        let argument = Box::into_raw(Box::new(work));
        let mut thread = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised before use and destroyed after; `run` gets a pointer that only it owns
        // if the thread starts; what `work` borrows outlives the thread: `'env` outlives the crowd, which joins.
        let status = unsafe {
            let mut attributes = MaybeUninit::uninit();
            let mut status = libc::pthread_attr_init(attributes.as_mut_ptr());
            if status == 0 {
                status = libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), self.stack);
                if status == 0 {
                    status = libc::pthread_create(
                        thread.as_mut_ptr(),
                        attributes.as_ptr(),
                        run,
                        argument.cast(),
                    );
                }
                libc::pthread_attr_destroy(attributes.as_mut_ptr());
            }
            status
        };
        if status != 0 {
            // SAFETY: no thread started, so the box is still ours.
            drop(unsafe { Box::from_raw(argument) });
            return Err(io::Error::from_raw_os_error(status));
        }
        // SAFETY: pthread_create succeeded and wrote it.
        self.threads.push(unsafe { thread.assume_init() });
        Ok(())
    }

    /// How many have started.
    pub(crate) fn len(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // SAFETY: started by us, joinable, joined once.
            let status = unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
            assert_eq!(status, 0, "a thread of the crowd cannot be joined");
        }
    }
}

extern "C" fn run(argument: *mut c_void) -> *mut c_void {
    // SAFETY: from `spawn`, which gave the box away. The lifetime is shortened to this call, which is within `'env`.
    let work = unsafe { Box::from_raw(argument.cast::<Work<'_>>()) };
    work();
    std::ptr::null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn all_have_run_when_it_returns() {
        let ran = AtomicUsize::new(0);
        let started = crowd(64 << 10, |crowd| {
            for amount in 1..=10 {
                let ran = &ran;
                crowd
                    .spawn(move || _ = ran.fetch_add(amount, Ordering::Relaxed))
                    .expect("a thread");
            }
            crowd.len()
        });
        assert_eq!((started, ran.into_inner()), (10, 55));
    }

    #[test]
    fn a_thread_that_cannot_start_is_an_error() {
        let error = crowd(1 << 60, |crowd| crowd.spawn(|| ())).expect_err("no such stack");
        assert!(error.raw_os_error().is_some());
    }
}
