//! Calls that take paths.

use super::files::FILE_LEN;
use super::{case, ints, out, text, v, words, zero};
use crate::place::{Arg, Case};
use libc::*;

/// A call whose arguments are paths and values only.
fn by_path(name: &'static str, nr: i64, make: impl Fn() -> Vec<Arg> + 'static) -> Case {
    case(name, nr, move |_| make()).may_fail()
}

pub(super) fn cases() -> Vec<Case> {
    let file = || Arg::from(text("file"));
    vec![
        by_path("open", SYS_open, move || {
            vec![file(), v(O_RDONLY | O_CLOEXEC)]
        }),
        by_path("openat", SYS_openat, move || {
            vec![v(AT_FDCWD), file(), v(O_RDONLY)]
        }),
        by_path("openat2", SYS_openat2, move || {
            vec![v(AT_FDCWD), file(), zero(40).into(), v(24)]
        }),
        by_path("creat", SYS_creat, || vec![text("made").into(), v(0o600)]),
        by_path("access", SYS_access, move || vec![file(), v(0)]),
        by_path("faccessat", SYS_faccessat, move || {
            vec![v(AT_FDCWD), file(), v(0)]
        }),
        by_path("faccessat2", SYS_faccessat2, move || {
            vec![v(AT_FDCWD), file(), v(0), v(0)]
        }),
        by_path("truncate", SYS_truncate, move || vec![file(), v(FILE_LEN)]),
        by_path("chdir", SYS_chdir, || vec![text(".").into()]),
        by_path("rename", SYS_rename, || {
            vec![text("none").into(), text("more").into()]
        }),
        by_path("renameat", SYS_renameat, || {
            vec![
                v(AT_FDCWD),
                text("none").into(),
                v(AT_FDCWD),
                text("more").into(),
            ]
        }),
        by_path("renameat2", SYS_renameat2, || {
            vec![
                v(AT_FDCWD),
                text("none").into(),
                v(AT_FDCWD),
                text("more").into(),
                v(0),
            ]
        }),
        by_path("mkdir", SYS_mkdir, || vec![text("dir").into(), v(0o700)]),
        by_path("mkdirat", SYS_mkdirat, || {
            vec![v(AT_FDCWD), text("dir").into(), v(0o700)]
        }),
        by_path("rmdir", SYS_rmdir, || vec![text("nodir").into()]),
        by_path("link", SYS_link, move || vec![file(), text("dir").into()]),
        by_path("linkat", SYS_linkat, move || {
            vec![v(AT_FDCWD), file(), v(AT_FDCWD), text("dir").into(), v(0)]
        }),
        by_path("unlink", SYS_unlink, || vec![text("none").into()]),
        by_path("unlinkat", SYS_unlinkat, || {
            vec![v(AT_FDCWD), text("none").into(), v(0)]
        }),
        by_path("symlink", SYS_symlink, || {
            vec![text("x").into(), text("dir").into()]
        }),
        by_path("symlinkat", SYS_symlinkat, || {
            vec![text("x").into(), v(AT_FDCWD), text("dir").into()]
        }),
        by_path("readlink", SYS_readlink, || {
            vec![text("link").into(), out(4).into(), v(4)]
        }),
        by_path("readlinkat", SYS_readlinkat, || {
            vec![v(AT_FDCWD), text("link").into(), out(4).into(), v(4)]
        }),
        by_path("chmod", SYS_chmod, move || vec![file(), v(0o644)]),
        by_path("fchmodat", SYS_fchmodat, move || {
            vec![v(AT_FDCWD), file(), v(0o644)]
        }),
        by_path("fchmodat2", SYS_fchmodat2, move || {
            vec![v(AT_FDCWD), file(), v(0o644), v(0)]
        }),
        by_path("chown", SYS_chown, move || vec![file(), v(-1), v(-1)]),
        by_path("lchown", SYS_lchown, move || vec![file(), v(-1), v(-1)]),
        by_path("fchownat", SYS_fchownat, move || {
            vec![v(AT_FDCWD), file(), v(-1), v(-1), v(0)]
        }),
        by_path("mknod", SYS_mknod, || {
            vec![text("dir").into(), v(S_IFIFO), v(0)]
        }),
        by_path("mknodat", SYS_mknodat, || {
            vec![v(AT_FDCWD), text("dir").into(), v(S_IFIFO), v(0)]
        }),
        by_path("utime", SYS_utime, move || {
            vec![file(), words(&[1, 2, 3]).into()]
        }),
        by_path("utimes", SYS_utimes, move || {
            vec![file(), words(&[1, 2, 3, 4, 5]).into()]
        }),
        by_path("futimesat", SYS_futimesat, move || {
            vec![v(AT_FDCWD), file(), words(&[1, 2, 3, 4, 5]).into()]
        }),
        by_path("utimensat", SYS_utimensat, move || {
            vec![v(AT_FDCWD), file(), words(&[1, 2, 3, 4, 5]).into(), v(0)]
        }),
        by_path("stat", SYS_stat, move || vec![file(), out(200).into()]),
        by_path("lstat", SYS_lstat, move || vec![file(), out(200).into()]),
        by_path("newfstatat", SYS_newfstatat, move || {
            vec![v(AT_FDCWD), file(), out(200).into(), v(0)]
        }),
        by_path("statx", SYS_statx, move || {
            vec![v(AT_FDCWD), file(), v(0), v(0xfff), out(300).into()]
        }),
        by_path("statfs", SYS_statfs, move || vec![file(), out(200).into()]),
        by_path("setxattr", SYS_setxattr, move || {
            vec![file(), text("user.a").into(), out(10).into(), v(10), v(0)]
        }),
        by_path("lsetxattr", SYS_lsetxattr, move || {
            vec![file(), text("user.a").into(), out(10).into(), v(10), v(0)]
        }),
        by_path("getxattr", SYS_getxattr, move || {
            vec![file(), text("user.a").into(), out(10).into(), v(10)]
        }),
        by_path("lgetxattr", SYS_lgetxattr, move || {
            vec![file(), text("user.a").into(), out(10).into(), v(10)]
        }),
        by_path("listxattr", SYS_listxattr, move || {
            vec![file(), out(100).bound().into(), v(100)]
        }),
        by_path("llistxattr", SYS_llistxattr, move || {
            vec![file(), out(100).bound().into(), v(100)]
        }),
        by_path("removexattr", SYS_removexattr, move || {
            vec![file(), text("user.none").into()]
        }),
        by_path("name_to_handle_at", SYS_name_to_handle_at, move || {
            vec![
                v(AT_FDCWD),
                file(),
                ints(&[64, 0]).bound().into(),
                out(4).bound().into(),
                v(0),
            ]
        }),
        by_path("acct", SYS_acct, || vec![text("none/none").into()]),
        by_path("swapon", SYS_swapon, || {
            vec![text("none/none").into(), v(0)]
        }),
        by_path("umount2", SYS_umount2, || {
            vec![text("none/none").into(), v(0)]
        }),
        by_path("chroot", SYS_chroot, || vec![text("none/none").into()]),
        by_path("execve", SYS_execve, || {
            let args = words(&[0, 0, 0])
                .link(0, text("true"))
                .link(8, text("again"));
            vec![
                text("/bin/true").into(),
                args.into(),
                words(&[0, 0]).link(0, text("A=1")).into(),
            ]
        })
        .in_child(),
        by_path("execveat", SYS_execveat, || {
            let args = words(&[0, 0]).link(0, text("true"));
            vec![
                v(AT_FDCWD),
                text("/bin/true").into(),
                args.into(),
                words(&[0, 0]).link(0, text("A=1")).into(),
                v(0),
            ]
        })
        .in_child(),
    ]
}
