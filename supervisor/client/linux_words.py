"""Linux's own words, the same on whatever system a trace is read: what calls take, what errors and signals are called."""

from __future__ import annotations

from collections.abc import Mapping

SIGNATURES: Mapping[str, str] = dict(
    word.rpartition(":")[::2]
    for word in """
accept:dpp accept4:dppx access:sd acct:s add_key:pppnd adjtimex:p alarm:u arch_prctl:dw bind:dAd bpf:xpu brk:p
cachestat:dppx capget:pp capset:pp chdir:s chmod:so chown:sdd chroot:s clock_adjtime:dp clock_getres:dp
clock_gettime:dp clock_nanosleep:dxpp clock_settime:dp clone:wwppw clone3:pn close:d close_range:ddx connect:dAd
copy_file_range:dpdpnx creat:so delete_module:px dup:u dup2:dd dup3:ddx epoll_create:d epoll_create1:x epoll_ctl:dxdp
epoll_pwait:dpddpn epoll_pwait2:dpdppn epoll_wait:dpdd eventfd:u eventfd2:ux execve:spp execveat:asppx exit:d
exit_group:d faccessat:asd faccessat2:asdx fadvise64:dlnx fallocate:ddll fanotify_init:xx fanotify_mark:dxwas fchdir:d
fchmod:do fchmodat:aso fchmodat2:asox fchown:ddd fchownat:asddx fcntl:dxw fdatasync:d fgetxattr:dppn
file_getattr:aspnx file_setattr:aspnx finit_module:dpx flistxattr:dpn flock:dx fork:- fremovexattr:dp fsconfig:dxppd
fsetxattr:dppnx fsmount:axx fsopen:px fspick:asx fstat:dp fstatfs:dp fsync:d ftruncate:dl futex:pxuppu
futex_requeue:pxdd futex_wait:pwwxpd futex_waitv:puxpd futex_wake:pwdx futimesat:asp get_mempolicy:ppwpw
get_robust_list:dpp get_thread_area:p getcpu:ppp getcwd:pw getdents:dpu getdents64:dpu getegid:- geteuid:- getgid:-
getgroups:dp getitimer:dp getpeername:dpp getpgid:d getpgrp:- getpid:- getppid:- getpriority:dd getrandom:pnx
getresgid:ppp getresuid:ppp getrlimit:up getrusage:dp getsid:d getsockname:dpp getsockopt:dddpp gettid:-
gettimeofday:pp getuid:- getxattr:sppn getxattrat:asxppn init_module:pnp inotify_add_watch:dsx inotify_init:-
inotify_init1:x inotify_rm_watch:dd io_cancel:wpp io_destroy:w io_getevents:wllpp io_pgetevents:wllppp io_setup:up
io_submit:wlp io_uring_enter:duuxpn io_uring_register:dupu io_uring_setup:up ioctl:dxw ioperm:wwd iopl:u ioprio_get:dd
ioprio_set:ddd kcmp:dddww kexec_file_load:ddwpw kexec_load:wwpw keyctl:dwwww kill:dd landlock_add_rule:ddpx
landlock_create_ruleset:pnx landlock_restrict_self:dx lchown:sdd lgetxattr:sppn link:ss linkat:asasx listen:dd
listmount:ppnx listxattr:spn listxattrat:asxpn llistxattr:spn lookup_dcookie:wpn lremovexattr:sp lseek:dlu
lsetxattr:sppnx lsm_get_self_attr:uppx lsm_list_modules:ppx lsm_set_self_attr:upux lstat:sp madvise:pnx
map_shadow_stack:pnx mbind:pwwpwx membarrier:xxd memfd_create:px memfd_secret:x migrate_pages:dwpp mincore:pnp
mkdir:so mkdirat:aso mknod:sou mknodat:asou mlock:pn mlock2:pnx mlockall:x mmap:pnxxdw modify_ldt:dpw mount:sspwp
mount_setattr:asxpn move_mount:asasx move_pages:dwpppx mprotect:pnx mq_getsetattr:dpp mq_notify:dp mq_open:pxop
mq_timedreceive:dpnpp mq_timedsend:dpnup mq_unlink:p mremap:pnnwp mseal:pnw msgctl:dxp msgget:dd msgrcv:dpnld
msgsnd:dpnd msync:pnx munlock:pn munlockall:- munmap:pn name_to_handle_at:asppx nanosleep:pp newfstatat:aspx open:sfm
open_by_handle_at:dpf open_tree:asx open_tree_attr:asxpn openat:asfm openat2:aspn pause:- perf_event_open:pdddw
personality:u pidfd_getfd:ddx pidfd_open:dx pidfd_send_signal:ddpx pipe:p pipe2:px pivot_root:ss pkey_alloc:ww
pkey_free:d pkey_mprotect:pnxd poll:pdd ppoll:pdppn prctl:dwwww pread64:dpnl preadv:dpwww preadv2:dpwwwx
prlimit64:dupp process_madvise:dpnxx process_mrelease:dx process_vm_readv:dpwpww process_vm_writev:dpwpww
pselect6:dppppp ptrace:llpw pwrite64:dpnl pwritev:dpwww pwritev2:dpwwwx quotactl:xpdp quotactl_fd:dxdp read:dpn
readahead:dln readlink:spd readlinkat:aspd readv:dpw reboot:ddxp recvfrom:dpnxpp recvmmsg:dpuxp recvmsg:dpx
remap_file_pages:pwxww removexattr:sp removexattrat:asxp rename:ss renameat:asas renameat2:asasx request_key:pppd
restart_syscall:- rmdir:s rseq:puxu rt_sigaction:dppn rt_sigpending:pn rt_sigprocmask:dppn rt_sigqueueinfo:ddp
rt_sigreturn:- rt_sigsuspend:pn rt_sigtimedwait:pppn rt_tgsigqueueinfo:dddp sched_get_priority_max:d
sched_get_priority_min:d sched_getaffinity:dup sched_getattr:dpux sched_getparam:dp sched_getscheduler:d
sched_rr_get_interval:dp sched_setaffinity:dup sched_setattr:dpx sched_setparam:dp sched_setscheduler:ddp
sched_yield:- seccomp:xxp select:dpppp semctl:ddxw semget:ddd semop:dpu semtimedop:dpup sendfile:ddpn sendmmsg:dpux
sendmsg:dpx sendto:dpnxAd set_mempolicy:dpw set_mempolicy_home_node:pwww set_robust_list:pn set_thread_area:p
set_tid_address:p setdomainname:pd setfsgid:d setfsuid:d setgid:d setgroups:dp sethostname:pd setitimer:dpp setns:dx
setpgid:dd setpriority:ddd setregid:dd setresgid:ddd setresuid:ddd setreuid:dd setrlimit:up setsid:- setsockopt:dddpd
settimeofday:pp setuid:d setxattr:sppnx setxattrat:asxppn shmat:dpd shmctl:dxp shmdt:p shmget:dnd shutdown:dd
sigaltstack:pp signalfd:dpn signalfd4:dpnx socket:ddd socketpair:dddp splice:dpdpnx stat:sp statfs:sp statmount:ppnx
statx:asxxp swapoff:s swapon:sx symlink:ss symlinkat:sas sync:- sync_file_range:dllx syncfs:d sysfs:dww sysinfo:p
syslog:dpd tee:ddnx tgkill:ddd time:p timer_create:dpp timer_delete:d timer_getoverrun:d timer_gettime:dp
timer_settime:dxpp timerfd_create:dx timerfd_gettime:dp timerfd_settime:dxpp times:p tkill:dd truncate:sl umask:x
umount2:sx uname:p unlink:s unlinkat:asx unshare:w uselib:s userfaultfd:x ustat:up utime:sp utimensat:aspx utimes:sp
vfork:- vhangup:- vmsplice:dpwx wait4:dpxp waitid:ddpxp write:dpn writev:dpw
""".replace(":-", ":").split()
)
"""Call -> a letter per argument, as the kernel declares it (events/syscalls/*/format in tracefs).

d, u, x, o: 32 bits, signed, unsigned, as hexadecimal flags, as an octal mode. l, n, w: 64 bits, signed, unsigned, as
a hexadecimal word. a: a directory's descriptor. p: a pointer; s: one to a path; A: one to a socket's address. f: flags of open(2);
m: a mode that is read only where these make a file.
"""

_OPEN_FLAGS = (
    (0o4010000, "O_SYNC"),
    (0o20200000, "O_TMPFILE"),
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o10000, "O_DSYNC"),
    (0o40000, "O_DIRECT"),
    (0o100000, "O_LARGEFILE"),
    (0o200000, "O_DIRECTORY"),
    (0o400000, "O_NOFOLLOW"),
    (0o1000000, "O_NOATIME"),
    (0o2000000, "O_CLOEXEC"),
    (0o10000000, "O_PATH"),
)
"""Of x86-64; those of several bits first."""

_ERROR_WORDS = """
EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT
EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV
ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX
ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT
ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET
ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH
EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY
EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON
"""
_ERRORS = tuple(_ERROR_WORDS.split())

_RESTARTS: Mapping[int, tuple[str, str]] = {
    512: ("ERESTARTSYS", "To be restarted if SA_RESTART is set"),
    513: ("ERESTARTNOINTR", "To be restarted"),
    514: ("ERESTARTNOHAND", "To be restarted if no handler"),
    516: ("ERESTART_RESTARTBLOCK", "Interrupted by signal"),
}
"""Answers that only the kernel sees, with strace's words for them: include/linux/errno.h."""

_SIGNAL_WORDS = """
SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM SIGTERM
SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO
SIGPWR SIGSYS
"""
_SIGNALS = tuple(_SIGNAL_WORDS.split())

MAX_ERRNO = 4095


def open_flags(flags: int) -> str:
    """O_RDONLY|O_CLOEXEC of the flags of open(2)."""
    words = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & 3]]
    rest = flags & 0xFFFFFFFF & ~3
    for bits, word in _OPEN_FLAGS:
        if rest & bits == bits:
            words.append(word)
            rest &= ~bits
    return "|".join(words + ([hex(rest)] if rest else []))


def makes_file(flags: int) -> bool:
    """Whether open(2) with these flags reads a mode."""
    return bool(flags & (0o100 | 0o20000000))


def error_name(result: int) -> str:
    """ENOENT of -2; empty for what is no error."""
    if not -MAX_ERRNO <= result < 0:
        return ""
    number = -result
    if number in _RESTARTS:
        return _RESTARTS[number][0]
    name = _ERRORS[number - 1] if number <= len(_ERRORS) else "-"
    return f"errno {number}" if name == "-" else name


def restart_words(result: int) -> str:
    """What strace says of a call that a signal interrupted before its caller could see it; empty for any other."""
    return _RESTARTS.get(-result, ("", ""))[1]


def signal_name(number: int) -> str:
    """SIGKILL of 9; SIGRTMIN+N and numbers that have no name as strace writes them."""
    if 0 < number <= len(_SIGNALS):
        return _SIGNALS[number - 1]
    return f"SIGRT_{number - 32}" if 32 <= number <= 64 else f"{number}"
