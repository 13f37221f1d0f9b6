//! `ioctl`: the size and direction that newer requests have in their number, and the older ones by name.

use super::Walk;

/// What a request's argument points to.
#[derive(Clone, Copy)]
enum Points {
    /// Nowhere: a value or nothing.
    Value,
    In(usize),
    Out(usize),
    Both(usize),
    /// To a list of interfaces: length, pointer.
    Interfaces,
}
use Points::{Both, In, Interfaces, Out, Value};

/// Requests from before numbers had sizes: terminals, files, sockets, interfaces, pseudo-terminals.
const OLD: &[(usize, Points)] = &[
    (0x5401, Out(36)), // TCGETS
    (0x5402, In(36)),  // TCSETS, TCSETSW, TCSETSF
    (0x5403, In(36)),
    (0x5404, In(36)),
    (0x5405, Out(18)), // TCGETA, TCSETA...
    (0x5406, In(18)),
    (0x5407, In(18)),
    (0x5408, In(18)),
    (0x5409, Value), // TCSBRK, TCXONC, TCFLSH, TIOCEXCL, TIOCNXCL, TIOCSCTTY
    (0x540a, Value),
    (0x540b, Value),
    (0x540c, Value),
    (0x540d, Value),
    (0x540e, Value),
    (0x540f, Out(4)), // TIOCGPGRP
    (0x5410, In(4)),  // TIOCSPGRP
    (0x5411, Out(4)), // TIOCOUTQ
    (0x5412, In(1)),  // TIOCSTI
    (0x5413, Out(8)), // TIOCGWINSZ
    (0x5414, In(8)),  // TIOCSWINSZ
    (0x5415, Out(4)), // TIOCMGET and the three that set
    (0x5416, In(4)),
    (0x5417, In(4)),
    (0x5418, In(4)),
    (0x5419, Out(4)), // TIOCGSOFTCAR
    (0x541a, In(4)),
    (0x541b, Out(4)),  // FIONREAD
    (0x541c, Both(1)), // TIOCLINUX
    (0x541d, Value),
    (0x541e, Out(72)), // TIOCGSERIAL
    (0x541f, In(72)),
    (0x5420, In(4)),  // TIOCPKT
    (0x5421, In(4)),  // FIONBIO
    (0x5422, Value),  // TIOCNOTTY
    (0x5423, In(4)),  // TIOCSETD
    (0x5424, Out(4)), // TIOCGETD
    (0x5425, Value),
    (0x5427, Value),
    (0x5428, Value),
    (0x5429, Out(4)), // TIOCGSID
    (0x5437, Value),
    (0x5441, Value), // TIOCGPTPEER, without a size
    (0x5450, Value), // FIONCLEX, FIOCLEX
    (0x5451, Value),
    (0x5452, In(4)), // FIOASYNC
    (0x545d, Out(80)),
    (0x5460, Out(8)), // FIOQSIZE
    (0x8901, In(4)),  // FIOSETOWN, SIOCSPGRP
    (0x8902, In(4)),
    (0x8903, Out(4)), // FIOGETOWN, SIOCGPGRP
    (0x8904, Out(4)),
    (0x8905, Out(4)),  // SIOCATMARK
    (0x8906, Out(16)), // the time of the last packet
    (0x8907, Out(16)),
    (0x8910, Both(40)),   // SIOCGIFNAME
    (0x8912, Interfaces), // SIOCGIFCONF
    (0x0001, Out(4)),     // FIBMAP
    (0x0002, Out(4)),     // FIGETBSZ
    (0x1260, Out(8)),     // BLKGETSIZE
    (0x1268, Out(4)),     // BLKSSZGET
    (0x125e, Out(4)),     // BLKROGET
    (0x1261, Value),
    (0x126c, Value),
];

/// Interface requests with a name and one value each: flags, addresses, masks, sizes, indices.
const INTERFACE: std::ops::RangeInclusive<usize> = 0x8913..=0x8955;
const INTERFACE_REQUEST: usize = 40;

/// Those of them in which drivers' own structures hang on a pointer (bridges, wake-up, link settings, lines), or which are longer or
/// not as the others are (sockets, address resolution).
const WITH_MORE: &[usize] = &[
    0x8940, 0x8941, 0x8944, 0x8945, 0x8946, 0x894a, 0x894b, 0x894c, 0x894d, 0x894e, 0x894f, 0x8950,
    0x8951, 0x8952, 0x8953, 0x8954, 0x8955,
];

/// Requests whose number has a size but whose structure holds pointers, or is longer than the number says.
const NESTED_TYPES: [u8; 5] = [
    b'd', // graphics
    0xae, // virtual machines
    0x94, // btrfs
    b'E', // event devices (lengths of bit sets)
    b'V', // video
];

pub(crate) fn request(walk: &mut Walk<'_>, at: usize) {
    let request = walk.call.args[1] as u32 as usize;
    if let Some((_, points)) = OLD.iter().find(|(number, _)| *number == request) {
        return match *points {
            Value => {}
            In(len) => walk.reads(at, len),
            Out(len) => walk.writes(at, len),
            Both(len) => walk.both(at, len),
            Interfaces => interfaces(walk, at),
        };
    }
    if INTERFACE.contains(&request) {
        walk.both(at, INTERFACE_REQUEST);
        if WITH_MORE.contains(&request) {
            walk.at_least();
        }
        return;
    }
    // Direction in the two top bits, size in the fourteen below, then type and number.
    let (direction, size) = (request >> 30, request >> 16 & 0x3fff);
    match (direction, size) {
        (0, 0) if request >> 8 == 0 => walk.unknown(),
        // "No argument" by its number; a value at most, except from drivers that do not keep the rule.
        (0, _) => walk.unknown(),
        (1, size) => walk.reads(at, size),
        (2, size) => walk.writes(at, size),
        (_, size) => walk.both(at, size),
    }
    if NESTED_TYPES.contains(&((request >> 8) as u8)) {
        walk.at_least();
    }
}

fn interfaces(walk: &mut Walk<'_>, at: usize) {
    walk.both(at, 16);
    if let (Some(len), Some(list)) = (walk.word(at), walk.word(at + 8)) {
        walk.writes(list, len as u32 as usize);
    }
}
