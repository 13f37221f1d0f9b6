//! Sockets, message queues, semaphores.

use super::control;
use super::nested;
use super::row::{At, Both, Bytes, In, Int, IntCount, Len, LenPlus, Out, Row, Text, Via, size};
use linux_raw_sys::general as nr;

/// The rows.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    Row(nr::__NR_socket, &[]),
    Row(nr::__NR_socketpair, &[(3, Out(Bytes(8)))]),
    Row(nr::__NR_bind, &[(1, In(Int(2)))]),
    Row(nr::__NR_connect, &[(1, In(Int(2)))]),
    Row(nr::__NR_listen, &[]),
    Row(nr::__NR_accept, &[(1, Out(At(2))), (2, Both(size::INT))]),
    Row(nr::__NR_accept4, &[(1, Out(At(2))), (2, Both(size::INT))]),
    Row(nr::__NR_getsockname, &[(1, Out(At(2))), (2, Both(size::INT))]),
    Row(nr::__NR_getpeername, &[(1, Out(At(2))), (2, Both(size::INT))]),
    Row(nr::__NR_shutdown, &[]),
    Row(nr::__NR_sendto, &[(1, In(Len(2))), (4, In(Int(5)))]),
    Row(nr::__NR_recvfrom, &[(1, Out(Len(2))), (4, Out(At(5))), (5, Both(size::INT))]),
    Row(nr::__NR_sendmsg, &[(1, Via(nested::message_read))]),
    Row(nr::__NR_recvmsg, &[(1, Via(nested::message_written))]),
    Row(nr::__NR_sendmmsg, &[(1, Via(nested::messages_read))]),
    Row(nr::__NR_recvmmsg, &[(1, Via(nested::messages_written)), (4, Both(size::TIMESPEC))]),
    Row(nr::__NR_setsockopt, &[(3, Via(control::setsockopt))]),
    Row(nr::__NR_getsockopt, &[(3, Both(At(4))), (4, Both(size::INT))]),
    // Message queues
    Row(nr::__NR_mq_open, &[(0, Text), (3, In(Bytes(64)))]),
    Row(nr::__NR_mq_unlink, &[(0, Text)]),
    Row(nr::__NR_mq_timedsend, &[(1, In(Len(2))), (4, In(size::TIMESPEC))]),
    Row(nr::__NR_mq_timedreceive, &[(1, Out(Len(2))), (3, Out(size::INT)), (4, In(size::TIMESPEC))]),
    Row(nr::__NR_mq_notify, &[(1, In(size::SIGEVENT))]),
    Row(nr::__NR_mq_getsetattr, &[(1, In(Bytes(64))), (2, Out(Bytes(64)))]),
    Row(nr::__NR_msgget, &[]),
    Row(nr::__NR_msgsnd, &[(1, In(LenPlus(2, 8)))]),
    Row(nr::__NR_msgrcv, &[(1, Out(LenPlus(2, 8)))]),
    Row(nr::__NR_msgctl, &[(2, Via(control::msgctl))]),
    Row(nr::__NR_semget, &[]),
    Row(nr::__NR_semop, &[(1, In(IntCount(2, 6)))]),
    Row(nr::__NR_semtimedop, &[(1, In(IntCount(2, 6))), (3, In(size::TIMESPEC))]),
    Row(nr::__NR_semctl, &[(3, Via(control::semctl))]),
];
