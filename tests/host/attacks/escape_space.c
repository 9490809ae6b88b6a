/* Ways out of the namespaces and the root directory, foreign ABIs, terminals, sockets and execution from memory. */
#include "attack.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/mount.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long mount_tmpfs(void) { return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0UL, NULL); }
static long mount_proc(void) { return syscall(SYS_mount, "proc", "/work", "proc", 0UL, NULL); }
static long mount_bind(void) { return syscall(SYS_mount, "/", "/work", NULL, MS_BIND | MS_REC, NULL); }
static long remount(void) { return syscall(SYS_mount, NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long umount_tmp(void) { return syscall(SYS_umount2, "/tmp", MNT_DETACH); }
static long umount_proc(void) { return syscall(SYS_umount2, "/proc", MNT_DETACH); }
static long pivot_root(void) { return syscall(SYS_pivot_root, "/tmp", "/tmp"); }
static long chroot_(void) { return syscall(SYS_chroot, "/tmp"); }
static long fsopen_(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long fspick_(void) { return syscall(SYS_fspick, AT_FDCWD, "/", 0); }
static long fsmount_(void) { return syscall(SYS_fsmount, 0, 0, 0); }
static long open_tree_(void) { return syscall(SYS_open_tree, AT_FDCWD, "/tmp", OPEN_TREE_CLONE); }
static long move_mount_(void) { return syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "/work", 0); }

static long mount_setattr_(void)
{
	struct mount_attr attr = { .attr_clr = MOUNT_ATTR_RDONLY };

	return syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &attr, sizeof(attr));
}

static long unshare_user(void) { return syscall(SYS_unshare, CLONE_NEWUSER); }
static long unshare_user_mount(void) { return syscall(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS); }
static long unshare_mount(void) { return syscall(SYS_unshare, CLONE_NEWNS); }
static long unshare_net(void) { return syscall(SYS_unshare, CLONE_NEWNET); }
static long unshare_pid(void) { return syscall(SYS_unshare, CLONE_NEWPID); }
static long unshare_ipc(void) { return syscall(SYS_unshare, CLONE_NEWIPC); }
static long unshare_uts(void) { return syscall(SYS_unshare, CLONE_NEWUTS); }
static long unshare_cgroup(void) { return syscall(SYS_unshare, CLONE_NEWCGROUP); }
static long unshare_time(void) { return syscall(SYS_unshare, 0x80 /* CLONE_NEWTIME */); }

static long after_clone(long pid)
{
	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return pid;
}

static long clone_user(void) { return after_clone(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)); }
static long clone_mount(void) { return after_clone(syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0)); }

static long clone3_user(void)
{
	struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };

	return after_clone(syscall(SYS_clone3, &args, sizeof(args)));
}

static long setns_self(void) { return syscall(SYS_setns, open("/proc/self/ns/net", O_RDONLY), CLONE_NEWNET); }
static long setns_init(void)
{
	int ns = open("/proc/1/ns/mnt", O_RDONLY);

	return ns < 0 ? -1 : syscall(SYS_setns, ns, CLONE_NEWNS);
}

static long setns_pidfd(void)
{
	int pidfd = syscall(SYS_pidfd_open, 1, 0);

	return pidfd < 0 ? -1 : syscall(SYS_setns, pidfd, CLONE_NEWNS | CLONE_NEWNET);
}

static long af_packet(void) { return socket(AF_PACKET, SOCK_RAW, htons(3)); }
static long raw_icmp(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long raw_icmp6(void) { return socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6); }
static long af_vsock(void) { return socket(AF_VSOCK, SOCK_STREAM, 0); }
static long af_alg(void) { return socket(AF_ALG, SOCK_SEQPACKET, 0); }
static long af_key(void) { return socket(AF_KEY, SOCK_RAW, 2); }
static long af_xdp(void) { return socket(AF_XDP, SOCK_RAW, 0); }
static long netlink_uevent(void)
{
	struct sockaddr_nl group = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT);

	return fd < 0 ? -1 : bind(fd, (struct sockaddr *)&group, sizeof(group));
}

static long netlink_audit(void) { return socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT); }
static long netlink_netfilter(void) { return socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER); }

static long netlink_link(void)
{
	struct { struct nlmsghdr head; struct ifinfomsg body; } down = {
		{ sizeof(down), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0 },
		{ .ifi_index = 1, .ifi_flags = 0, .ifi_change = 1 /* IFF_UP */ },
	};
	struct { struct nlmsghdr head; struct nlmsgerr body; char rest[1024]; } answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0 || send(fd, &down, sizeof(down), 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
		return -1;
	errno = -answer.body.error;
	return answer.body.error ? -1 : 0;
}

static const char *abstract_name;

static long abstract_socket(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(abstract_name);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	memcpy(address.sun_path + 1, abstract_name, length);
	return connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static int controlling_terminal(void)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), slave, zero = 0;

	if (master < 0)
		return 0; /* None to be had: the call is made on standard input. */
	ioctl(master, TIOCSPTLCK, &zero);
	slave = ioctl(master, TIOCGPTPEER, O_RDWR);
	return slave < 0 ? 0 : slave;
}

static long tiocsti(void) { return ioctl(controlling_terminal(), TIOCSTI, "x"); }
static long tiocsti_high(void) { return syscall(SYS_ioctl, controlling_terminal(), TIOCSTI | 1UL << 32, "x"); }
static long tioclinux(void) { char code = 6; return ioctl(controlling_terminal(), TIOCLINUX, &code); }

static sigjmp_buf fault;
static void on_fault(int number) { (void)number; siglongjmp(fault, 1); }

static long ia32_call(long number, long first, long second)
{
	long rc;

	signal(SIGSEGV, on_fault);
	if (sigsetjmp(fault, 1)) {
		errno = ENOSYS; /* A kernel without the ABI. */
		return -1;
	}
	__asm__ volatile("int $0x80" : "=a"(rc) : "a"(number), "b"(first), "c"(second) : "memory", "r8", "r9", "r10", "r11");
	if (rc < 0 && rc > -4096) {
		errno = -rc;
		return -1;
	}
	return rc;
}

static long ia32_getpid(void) { return ia32_call(20, 0, 0); }

static long ia32_mkdir(void)
{
	/* 39 is getpid for x86-64 and mkdir for ia32: a filter that forgets the ABI lets it through. */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	strcpy(low, "/tmp/ia32");
	return ia32_call(39, (long)low, 0755);
}

static long x32_getpid(void) { return syscall(0x40000000L | SYS_getpid); }

static long copy_self(int to)
{
	char block[65536];
	int self = open("/proc/self/exe", O_RDONLY);
	ssize_t got;

	if (self < 0)
		self = open("/attacks/escape_space", O_RDONLY);
	while ((got = read(self, block, sizeof(block))) > 0)
		if (write(to, block, got) != got)
			return -1;
	return close(self);
}

/* The executed copy prints the EFFECT line itself ("executed"); only a refusal returns here. */
static char *const executed[] = { "x", "executed", NULL };
static char *const no_environment[] = { NULL };

static long memfd_exec(void)
{
	int fd = memfd_create("x", 0);

	if (fd < 0 || copy_self(fd) < 0)
		return -1;
	return syscall(SYS_execveat, fd, "", executed, no_environment, AT_EMPTY_PATH);
}

static long memfd_exec_path(void)
{
	char path[64];
	int fd = memfd_create("x", 0);

	if (fd < 0 || copy_self(fd) < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return execve(path, executed, no_environment);
}

static long shm_exec(void)
{
	int fd = open("/dev/shm/x", O_WRONLY | O_CREAT | O_EXCL, 0755);

	if (fd < 0 || copy_self(fd) < 0)
		return -1;
	close(fd);
	return execve("/dev/shm/x", executed, no_environment);
}

static long was_executed(void) { return 0; }
static long setuid_bit(void) { close(open("/tmp/s", O_CREAT | O_WRONLY, 0755)); return chmod("/tmp/s", 04755); }

static const struct attempt attempts[] = {
	{ "mount_tmpfs", mount_tmpfs }, { "mount_proc", mount_proc }, { "mount_bind", mount_bind }, { "remount", remount },
	{ "umount_tmp", umount_tmp }, { "umount_proc", umount_proc }, { "pivot_root", pivot_root }, { "chroot", chroot_ },
	{ "fsopen", fsopen_ }, { "fspick", fspick_ }, { "fsmount", fsmount_ }, { "open_tree", open_tree_ },
	{ "move_mount", move_mount_ }, { "mount_setattr", mount_setattr_ }, { "unshare_user", unshare_user },
	{ "unshare_user_mount", unshare_user_mount }, { "unshare_mount", unshare_mount }, { "unshare_net", unshare_net },
	{ "unshare_pid", unshare_pid }, { "unshare_ipc", unshare_ipc }, { "unshare_uts", unshare_uts },
	{ "unshare_cgroup", unshare_cgroup }, { "unshare_time", unshare_time }, { "clone_user", clone_user },
	{ "clone_mount", clone_mount }, { "clone3_user", clone3_user }, { "setns_self", setns_self },
	{ "setns_init", setns_init }, { "setns_pidfd", setns_pidfd }, { "af_packet", af_packet }, { "raw_icmp", raw_icmp },
	{ "raw_icmp6", raw_icmp6 }, { "af_vsock", af_vsock }, { "af_alg", af_alg }, { "af_key", af_key }, { "af_xdp", af_xdp },
	{ "netlink_uevent", netlink_uevent }, { "netlink_audit", netlink_audit }, { "netlink_netfilter", netlink_netfilter },
	{ "netlink_link", netlink_link }, { "abstract_socket", abstract_socket }, { "tiocsti", tiocsti },
	{ "tiocsti_high", tiocsti_high }, { "tioclinux", tioclinux }, { "ia32_getpid", ia32_getpid },
	{ "ia32_mkdir", ia32_mkdir }, { "x32_getpid", x32_getpid }, { "memfd_exec", memfd_exec },
	{ "memfd_exec_path", memfd_exec_path }, { "shm_exec", shm_exec }, { "executed", was_executed },
	{ "setuid_bit", setuid_bit },
};

int main(int argc, char **argv)
{
	abstract_name = argc > 2 ? argv[2] : "none";
	return run_attempt(attempts, COUNT(attempts), argc, argv);
}
