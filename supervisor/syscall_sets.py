"""Names of system calls: what exists, the @sets that policies may use, and the %guards that look at arguments.

Pure data, for any operating system; numbers come from libseccomp (linux/seccomp.py). Sets follow the grouping of systemd's
@filter-sets (systemd.exec(5)), cut to what a confined program can be given or must be refused as a whole. A name may
stand in several sets: which action wins is for policy.py to say.
"""

from __future__ import annotations

from collections.abc import Mapping

LATE_SYSCALLS: Mapping[str, int] = {
    "process_mrelease": 448,
    "futex_waitv": 449,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
"""Calls that a libseccomp 2.5 may not know. Since Linux 5.1 a new call has one number on every architecture."""

_SETS: dict[str, str] = {
    # What every process needs merely to start and end; execve is here because the filter is installed before it.
    "@start": """
        access arch_prctl brk close close_range execve exit exit_group faccessat faccessat2 fcntl fstat futex
        getrandom ioctl lseek mmap mprotect mremap munmap newfstatat open openat pread64 prlimit64 read readlink
        readlinkat readv rseq rt_sigaction rt_sigprocmask rt_sigreturn set_robust_list set_tid_address stat lstat
        statx write writev restart_syscall sigaltstack get_robust_list getrlimit madvise uname
    """,
    "@identity": """
        getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getresgid getresuid getsid gettid getuid
        capget getcpu getcwd getpriority getrusage sysinfo times umask
    """,
    "@clock-read": """
        clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep time
    """,
    "@timer": """
        alarm getitimer pause setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_settime
        timerfd_create timerfd_gettime timerfd_settime
    """,
    "@signal": """
        kill rt_sigpending rt_sigqueueinfo rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo signalfd signalfd4 tgkill
        tkill pidfd_open pidfd_send_signal
    """,
    "@process": """
        clone execve execveat fork get_thread_area prctl set_thread_area setpgid setpriority setrlimit setsid vfork
        wait4 waitid membarrier seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
        ioprio_get ioprio_set
    """,
    "@scheduler": """
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield
    """,
    "@memory": """
        get_mempolicy madvise mbind memfd_create mincore mlock mlock2 mlockall mseal msync munlock munlockall
        pkey_alloc pkey_free pkey_mprotect process_madvise remap_file_pages set_mempolicy set_mempolicy_home_node
        map_shadow_stack
    """,
    "@sync": """
        futex futex_requeue futex_wait futex_waitv futex_wake membarrier
    """,
    "@io": """
        dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
        epoll_wait_old eventfd eventfd2 pipe pipe2 poll ppoll preadv preadv2 pselect6 pwrite64 pwritev pwritev2
        readahead select sendfile splice tee vmsplice copy_file_range
    """,
    "@aio": """
        io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    """,
    "@file-read": """
        cachestat chdir fadvise64 fchdir fgetxattr file_getattr flistxattr flock fstatfs getdents getdents64 getxattr
        getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lgetxattr listxattr listxattrat
        llistxattr name_to_handle_at statfs ustat
    """,
    "@file-write": """
        chmod chown creat fallocate fchmod fchmodat fchmodat2 fchown fchownat fdatasync file_setattr fremovexattr
        fsetxattr fsync ftruncate futimesat lchown link linkat lremovexattr lsetxattr mkdir mkdirat mknod mknodat
        removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat symlink symlinkat sync
        sync_file_range syncfs truncate unlink unlinkat utime utimensat utimes
    """,
    "@network": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
        sendmsg sendto setsockopt shutdown socket socketpair
    """,
    "@ipc": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl
        semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "@setid": """
        capset setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid
    """,
    # From here on: what no confined program is given.
    "@mount": """
        fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree open_tree_attr pivot_root
        statmount umount2
    """,
    "@namespace": """
        setns unshare
    """,
    "@module": """
        create_module delete_module finit_module init_module query_module get_kernel_syms
    """,
    "@kexec": """
        kexec_file_load kexec_load reboot
    """,
    "@debug": """
        kcmp lookup_dcookie perf_event_open pidfd_getfd process_mrelease process_vm_readv process_vm_writev ptrace
    """,
    "@bpf": """
        bpf
    """,
    "@keyring": """
        add_key keyctl request_key
    """,
    "@io-uring": """
        io_uring_enter io_uring_register io_uring_setup
    """,
    "@clock-set": """
        adjtimex clock_adjtime clock_settime settimeofday
    """,
    "@admin": """
        acct fanotify_init fanotify_mark open_by_handle_at quotactl quotactl_fd setdomainname sethostname swapoff
        swapon syslog vhangup
    """,
    "@hardware": """
        ioperm iopl
    """,
    "@surface": """
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr memfd_secret migrate_pages modify_ldt move_pages
        personality userfaultfd vserver
    """,
    "@obsolete": """
        _sysctl afs_syscall getpmsg nfsservctl putpmsg security sysfs tuxcall uselib
    """,
}

SYSCALL_SETS: Mapping[str, frozenset[str]] = {name: frozenset(text.split()) for name, text in _SETS.items()}
"""@set -> the names in it."""

_UNGROUPED = "chroot clone3 openat2"

KNOWN_SYSCALLS: frozenset[str] = frozenset().union(*SYSCALL_SETS.values(), _UNGROUPED.split())
"""Every call of x86-64 and aarch64 up to Linux 6.17."""

GUARDS: Mapping[str, str] = {
    "%namespaces": "clone with any CLONE_NEW* flag; clone3, whose flags lie in memory, answers ENOSYS",
    "%terminal": "ioctl TIOCSTI and TIOCLINUX, which type into the terminal",
    "%setid": "a set-user-id or set-group-id bit given to a file: chmod, creat, mknod, open; openat2 answers ENOSYS",
    "%devices": "mknod of anything but a regular file, FIFO or socket",
    "%sockets": "socket families other than Unix, IPv4, IPv6 and netlink; kinds and protocols beyond TCP, UDP and ICMP",
    "%netlink": "netlink sockets",
    "%raw-sockets": "packet sockets and raw IP sockets",
    "%socket-filters": "setsockopt that attaches a BPF program to a socket",
    "%multicast": "setsockopt that joins a multicast group or sets IPv6 extension headers; always where a run is held to addresses",
    "%personality": "an execution domain that weakens the address space (READ_IMPLIES_EXEC, no randomisation)",
    "%realtime": "a realtime or deadline scheduling class",
}
"""%guard -> what it refuses, of calls that are otherwise allowed."""
