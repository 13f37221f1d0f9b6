//! Who still lives of those that were forked, and may need blocks that this process has given back.
//!
//! Each fork has a pipe: the child has the writing end, and with it everybody it forks; the system closes it when the last
//! of them ends or starts another program, however that comes about. The parent looks at the reading end.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use userswap_sys::descriptor::move_up;

/// Leases that are told apart; with more of them, the newest stands for several forks.
const MOST: usize = 24;

/// Forks that share a pipe.
struct Lease {
    first: u64,
    last: u64,
    /// `None`: for ever, since no pipe was to be had.
    end: Option<OwnedFd>,
}

/// A fork that is being made.
pub(super) struct Pending {
    ours: Option<OwnedFd>,
    childs: Option<OwnedFd>,
}

/// The forks whose children may live.
pub(super) struct Leases(Vec<Lease>);

impl Pending {
    /// Before a fork.
    pub(super) fn new() -> Self {
        match pipe_with(PipeFlags::CLOEXEC) {
            Ok((ours, childs)) => Self {
                ours: Some(move_up(ours)),
                childs: Some(move_up(childs)),
            },
            Err(_) => Self {
                ours: None,
                childs: None,
            },
        }
    }

    /// In the child: what says that it lives.
    pub(super) fn in_child(self) -> Option<OwnedFd> {
        self.childs
    }

    /// In the parent: what tells whether the child lives.
    pub(super) fn in_parent(self) -> Option<OwnedFd> {
        self.ours
    }
}

/// Descriptors that are no longer needed. To be dropped where no lock is held: closing one can come back here, since under
/// `run` system calls are looked at, and those that close a descriptor of ours are refused.
#[must_use]
pub(super) struct Ended(Vec<Lease>);

impl Ended {
    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Leases {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MOST))
    }

    /// Fork number `fork` was made.
    pub(super) fn add(&mut self, fork: u64, end: Option<OwnedFd>) -> Ended {
        let mut ended = self.take_ended();
        let lease = Lease {
            first: fork,
            last: fork,
            end,
        };
        if self.0.len() < MOST {
            self.0.push(lease);
        } else {
            // The pipe of the newest is asked no more: both count for ever.
            let newest = self.0.last_mut().expect("there are some");
            newest.last = fork;
            let end = newest.end.take();
            ended.0.extend([Lease { end, ..*newest }, lease]);
        }
        ended
    }

    /// Takes out those whose children are gone.
    pub(super) fn take_ended(&mut self) -> Ended {
        let gone = |lease: &mut Lease| lease.end.as_ref().is_some_and(|end| !lives(end));
        Ended(self.0.extract_if(.., gone).collect())
    }

    /// Whether a child of the forks after `after`, up to `to`, may live.
    pub(super) fn need(&self, after: u64, to: u64) -> bool {
        let mut leases = self.0.iter();
        leases.any(|lease| after < lease.last && lease.first <= to)
    }

    /// In a child of fork: they are the parent's.
    pub(super) fn clear(&mut self) -> Ended {
        Ended(self.0.drain(..).collect())
    }

    pub(super) fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        for end in self.0.iter().filter_map(|lease| lease.end.as_ref()) {
            name(end.as_raw_fd());
        }
    }
}

fn lives(end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(end, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut fds, Some(&now)) {
            Err(Errno::INTR) => {}
            Err(_) => return true,
            Ok(_) => return !fds[0].revents().contains(PollFlags::HUP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_last_holder() {
        let mut leases = Leases::new();
        let mut children: Vec<_> = (1..=3)
            .map(|fork| {
                let mut pending = Pending::new();
                let child = pending.childs.take();
                assert!(!leases.add(fork, pending.in_parent()).any());
                child
            })
            .collect();
        assert!(!leases.take_ended().any());
        assert!(leases.need(0, 1) && leases.need(1, 2) && leases.need(0, 9));
        assert!(!leases.need(3, 9) && !leases.need(2, 2));
        children[1] = None;
        assert!(leases.take_ended().any());
        assert!(!leases.need(1, 2) && leases.need(0, 2) && leases.need(1, 3));
        children.clear();
        assert!(leases.take_ended().any());
        assert!(!leases.need(0, 9));
    }

    #[test]
    fn too_many_to_tell_apart_are_not_forgotten() {
        let mut leases = Leases::new();
        let mut children = Vec::new();
        for fork in 1..=MOST as u64 + 2 {
            let mut pending = Pending::new();
            children.push(pending.childs.take());
            drop(leases.add(fork, pending.in_parent()));
        }
        let last = MOST as u64 + 2;
        assert!((0..last).all(|fork| leases.need(fork, fork + 1)));
        children.clear();
        assert!(leases.take_ended().any());
        assert!(!leases.need(0, 1) && leases.need(last - 1, last));
    }
}
