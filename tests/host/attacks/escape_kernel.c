/* System calls that reach the kernel's privileged parts. Arguments are ones that succeed for an unconfined root, and
 * harmless there (the current time is set, Ctrl-Alt-Del is switched off), so that a refusal is never a mere EINVAL. */
#include "attack.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <sched.h>
#include <signal.h>
#include <sys/fanotify.h>
#include <sys/io.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long init_module(void) { return syscall(SYS_init_module, "x", 1UL, ""); }
static long finit_module(void) { return syscall(SYS_finit_module, open("/proc/self/exe", O_RDONLY), "", 0); }
static long delete_module(void) { return syscall(SYS_delete_module, "no_such_module", O_NONBLOCK); }

static long bpf(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };

	return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
}

static long perf_event_open(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_TASK_CLOCK, .exclude_kernel = 1,
	};

	return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0UL);
}

static long userfaultfd(void) { return syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */); }

static long io_uring_setup(void)
{
	struct io_uring_params params = { 0 };

	return syscall(SYS_io_uring_setup, 4, &params);
}

static long keyctl_join(void) { return syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, "attack"); }
static long keyctl_user(void) { return syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -4 /* USER_KEYRING */, 1); }
static long add_key(void) { return syscall(SYS_add_key, "user", "supervisor-attack", "x", 1UL, -4); }

static long open_by_handle_at_(void)
{
	struct { struct file_handle head; unsigned char bytes[128]; } handle = { .head.handle_bytes = 128 };
	int mount_id;
	int root = open("/", O_RDONLY | O_DIRECTORY);

	if (syscall(SYS_name_to_handle_at, AT_FDCWD, "/usr", &handle, &mount_id, 0) < 0) {
		/* The bare call all the same: ext4's root inode is 2. */
		handle.head.handle_bytes = 8;
		handle.head.handle_type = 1;
		memcpy(handle.bytes, "\2\0\0\0\0\0\0\0", 8);
	}
	return syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY);
}

static long kexec_load(void) { return syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL); }
static long kexec_file_load(void) { return syscall(SYS_kexec_file_load, -1, -1, 1UL, "", 8UL /* NO_INITRAMFS */); }
static long reboot(void) { return syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, NULL); }
static long swapon_(void) { return syscall(SYS_swapon, "/tmp/no-such-swap", 0); }
static long swapoff_(void) { return syscall(SYS_swapoff, "/tmp/no-such-swap"); }
static long acct_(void) { return syscall(SYS_acct, NULL); }
static long syslog_(void) { static char text[4096]; return syscall(SYS_syslog, 3, text, sizeof(text)); }
static long vhangup_(void) { return syscall(SYS_vhangup); }
static long iopl_(void) { return syscall(SYS_iopl, 3); }
static long ioperm_(void) { return syscall(SYS_ioperm, 0x80UL, 1UL, 1); }

static long settimeofday_(void)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	return syscall(SYS_settimeofday, &now, NULL);
}

static long clock_settime_(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return syscall(SYS_clock_settime, CLOCK_REALTIME, &now);
}

static long adjtimex_(void)
{
	struct timex change = { .modes = ADJ_OFFSET, .offset = 0 };

	return syscall(SYS_adjtimex, &change);
}

static long sethostname_(void) { return syscall(SYS_sethostname, "owned", 5UL); }
static long setdomainname_(void) { return syscall(SYS_setdomainname, "owned", 5UL); }
static long fanotify(void) { return syscall(SYS_fanotify_init, FAN_CLASS_CONTENT, O_RDONLY); }
static long mknod_block(void) { return mknod("/tmp/disk", S_IFBLK | 0666, makedev(254, 0)); }
static long mknod_char(void) { return mknod("/tmp/mem", S_IFCHR | 0666, makedev(1, 1)); }

/* The parent is our PID 1: the process that set the sandbox up. */
static long ptrace_attach(void) { return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL); }
static long ptrace_seize(void) { return ptrace(PTRACE_SEIZE, getppid(), NULL, NULL); }

static long vm_read(void)
{
	char byte;
	struct iovec local = { &byte, 1 }, remote = { (void *)&bpf, 1 };

	return process_vm_readv(getppid(), &local, 1, &remote, 1, 0);
}

static long vm_write(void)
{
	char byte = 0;
	struct iovec local = { &byte, 1 }, remote = { (void *)&bpf, 1 };

	return process_vm_writev(getppid(), &local, 1, &remote, 1, 0);
}

static long pidfd_getfd(void)
{
	int pidfd = syscall(SYS_pidfd_open, getppid(), 0);

	return pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, 0, 0);
}

static long kcmp_(void) { return syscall(SYS_kcmp, getppid(), getpid(), 0, 0UL, 0UL); }
static long kill_init(void)
{
	pid_t init = getppid();

	if (kill(init, SIGKILL) < 0)
		return -1;
	usleep(200000);
	if (kill(init, 0) == 0 || errno == EPERM) {
		errno = EPERM; /* The kernel shields PID 1 from its own namespace. */
		return -1;
	}
	return 0;
}

static long kill_all(void)
{
	/* Everyone it may signal: only itself is left out, so whoever of the run is alive dies; the host must not. */
	return kill(-1, SIGKILL);
}

static long capset_(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { ~0U, ~0U, ~0U }, { 0x1ff, 0x1ff, 0x1ff } };

	return syscall(SYS_capset, &head, data);
}

static long setuid_root(void)
{
	uid_t before = getuid();

	if (syscall(SYS_setresuid, 0, 0, 0) < 0)
		return -1;
	if (before == 0) {
		errno = EPERM; /* Nothing was gained. */
		return -1;
	}
	return 0;
}

static long setgroups_(void) { gid_t root = 0; return syscall(SYS_setgroups, 1, &root); }
static long nice_up(void) { return syscall(SYS_setpriority, PRIO_PROCESS, 0, -20); }
static long io_priority(void) { return syscall(SYS_ioprio_set, 1, 0, 1 << 13); }

static long realtime(void)
{
	struct sched_param fifo = { .sched_priority = 50 };

	return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &fifo);
}

static long raise_files(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_max += 1;
	return setrlimit(RLIMIT_NOFILE, &limit);
}

static const struct attempt attempts[] = {
	{ "init_module", init_module }, { "finit_module", finit_module }, { "delete_module", delete_module },
	{ "bpf", bpf }, { "perf_event_open", perf_event_open }, { "userfaultfd", userfaultfd },
	{ "io_uring_setup", io_uring_setup }, { "keyctl_join", keyctl_join }, { "keyctl_user", keyctl_user },
	{ "add_key", add_key }, { "open_by_handle_at", open_by_handle_at_ }, { "kexec_load", kexec_load },
	{ "kexec_file_load", kexec_file_load }, { "reboot", reboot }, { "swapon", swapon_ }, { "swapoff", swapoff_ },
	{ "acct", acct_ }, { "syslog", syslog_ }, { "vhangup", vhangup_ }, { "iopl", iopl_ }, { "ioperm", ioperm_ },
	{ "settimeofday", settimeofday_ }, { "clock_settime", clock_settime_ }, { "adjtimex", adjtimex_ },
	{ "sethostname", sethostname_ }, { "setdomainname", setdomainname_ }, { "fanotify_init", fanotify },
	{ "mknod_block", mknod_block }, { "mknod_char", mknod_char }, { "ptrace_attach", ptrace_attach },
	{ "ptrace_seize", ptrace_seize }, { "process_vm_readv", vm_read }, { "process_vm_writev", vm_write },
	{ "pidfd_getfd", pidfd_getfd }, { "kcmp", kcmp_ }, { "kill_init", kill_init }, { "kill_all", kill_all },
	{ "capset", capset_ }, { "setuid_root", setuid_root }, { "setgroups", setgroups_ }, { "nice", nice_up },
	{ "ioprio", io_priority }, { "realtime", realtime }, { "raise_files", raise_files },
};

int main(int argc, char **argv)
{
	return run_attempt(attempts, COUNT(attempts), argc, argv);
}
