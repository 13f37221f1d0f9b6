//! The system as a whole: mounts, keys, modules, programs in the kernel; and calls that are no more.

use super::control;
use super::nested;
use super::row::{At, Both, Bytes, Count, In, Int, Len, Out, Row, Text, Via, size};
use linux_raw_sys::general as nr;

/// The rows.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    Row(nr::__NR_uname, &[(0, Out(Bytes(390)))]),
    Row(nr::__NR_sysinfo, &[(0, Out(Bytes(112)))]),
    Row(nr::__NR_getrandom, &[(0, Out(Len(1)))]),
    Row(nr::__NR_syslog, &[(1, Out(Int(2)))]),
    Row(nr::__NR_sethostname, &[(0, In(Int(1)))]),
    Row(nr::__NR_setdomainname, &[(0, In(Int(1)))]),
    Row(nr::__NR_reboot, &[(3, Text)]),
    Row(nr::__NR_vhangup, &[]),
    Row(nr::__NR_iopl, &[]),
    Row(nr::__NR_ioperm, &[]),
    Row(nr::__NR_modify_ldt, &[(1, Both(Len(2)))]),
    Row(nr::__NR_acct, &[(0, Text)]),
    Row(nr::__NR_swapon, &[(0, Text)]),
    Row(nr::__NR_swapoff, &[(0, Text)]),
    Row(nr::__NR_sysfs, &[(1, Via(control::sysfs)), (2, Via(control::sysfs_name))]),
    // Mounts
    Row(nr::__NR_mount, &[(0, Text), (1, Text), (2, Text), (4, In(Bytes(4096)))]),
    Row(nr::__NR_umount2, &[(0, Text)]),
    Row(nr::__NR_pivot_root, &[(0, Text), (1, Text)]),
    Row(nr::__NR_open_tree, &[(1, Text)]),
    Row(nr::__NR_open_tree_attr, &[(1, Text), (3, In(Len(4)))]),
    Row(nr::__NR_move_mount, &[(1, Text), (3, Text)]),
    Row(nr::__NR_mount_setattr, &[(1, Text), (3, In(Len(4)))]),
    Row(nr::__NR_fsopen, &[(0, Text)]),
    Row(nr::__NR_fsconfig, &[(2, Text), (3, Via(control::fsconfig))]),
    Row(nr::__NR_fsmount, &[]),
    Row(nr::__NR_fspick, &[(1, Text)]),
    Row(nr::__NR_statmount, &[(0, Via(nested::sized_structure)), (1, Out(Len(2)))]),
    Row(nr::__NR_listmount, &[(0, Via(nested::sized_structure)), (1, Out(Count(2, 8)))]),
    Row(nr::__NR_quotactl, &[(1, Text), (3, Via(control::quotactl))]),
    Row(nr::__NR_quotactl_fd, &[(3, Via(control::quotactl_fd))]),
    // Security
    Row(nr::__NR_add_key, &[(0, Text), (1, Text), (2, In(Len(3)))]),
    Row(nr::__NR_request_key, &[(0, Text), (1, Text), (2, Text)]),
    Row(nr::__NR_keyctl, &[(1, Via(control::keyctl_first)), (2, Via(control::keyctl_second)), (3, Via(control::keyctl_third))]),
    Row(nr::__NR_seccomp, &[(2, Via(control::seccomp))]),
    Row(nr::__NR_landlock_create_ruleset, &[(0, In(Len(1)))]),
    Row(nr::__NR_landlock_add_rule, &[(2, In(Bytes(16)))]),
    Row(nr::__NR_landlock_restrict_self, &[]),
    Row(nr::__NR_lsm_get_self_attr, &[(1, Out(At(2))), (2, Both(size::INT))]),
    Row(nr::__NR_lsm_set_self_attr, &[(1, In(Int(2)))]),
    Row(nr::__NR_lsm_list_modules, &[(0, Out(At(1))), (1, Both(size::INT))]),
    // Kernel programs and modules
    Row(nr::__NR_bpf, &[(1, Via(control::bpf))]),
    Row(nr::__NR_perf_event_open, &[(0, Via(control::perf_attributes))]),
    Row(nr::__NR_init_module, &[(0, In(Len(1))), (2, Text)]),
    Row(nr::__NR_finit_module, &[(1, Text)]),
    Row(nr::__NR_delete_module, &[(0, Text)]),
    Row(nr::__NR_kexec_load, &[(2, Via(nested::kexec_segments))]),
    Row(nr::__NR_kexec_file_load, &[(3, In(Len(2)))]),
    Row(nr::__NR_lookup_dcookie, &[(1, Out(Len(2)))]),
    Row(nr::__NR_uretprobe, &[]),
    // No more, or never were: the kernel refuses them without a look at their arguments
    Row(nr::__NR_uselib, &[]),
    Row(nr::__NR__sysctl, &[]),
    Row(nr::__NR_create_module, &[]),
    Row(nr::__NR_get_kernel_syms, &[]),
    Row(nr::__NR_query_module, &[]),
    Row(nr::__NR_nfsservctl, &[]),
    Row(nr::__NR_getpmsg, &[]),
    Row(nr::__NR_putpmsg, &[]),
    Row(nr::__NR_afs_syscall, &[]),
    Row(nr::__NR_tuxcall, &[]),
    Row(nr::__NR_security, &[]),
    Row(nr::__NR_set_thread_area, &[]),
    Row(nr::__NR_get_thread_area, &[]),
    Row(nr::__NR_vserver, &[]),
];
