// SPDX-License-Identifier: Apache-2.0
/*
 * supervisor-probe STATE_DIR CGROUP [NAME...]
 *
 * Finds out what this kernel can do by doing it, and prints one line a feature: "NAME ERRNO DETAIL". ERRNO 0 is
 * available. CGROUP is an empty cgroup v2 directory made for this program ("" where there is none); the caller removes
 * it. With NAMEs only those are tried.
 *
 * Every probe runs in a child of its own, which may hang or crash: after PROBE_SECONDS it and what it started are
 * killed. Namespaces, mounts and keyrings die with that child; files have no name. Nothing is left behind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROBE_SECONDS 2
#define MAP_UID 805306368 /* any uid that is not 0 and has no account */
#define FORGED_PID 4242

/* <sys/mount.h> and <linux/mount.h> do not go together before glibc 2.37. */
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
#define OLD_MS_REC 16384
#define OLD_MS_PRIVATE (1 << 18)

static const char *state_dir;
static const char *cgroup_dir;
static char detail[256];

static long clone3(uint64_t flags, int *pidfd, int cgroup)
{
	struct clone_args args = {
		.flags = flags,
		.pidfd = (uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = cgroup,
	};

	return syscall(SYS_clone3, &args, sizeof(args));
}

static pid_t pausing_child(uint64_t flags, int *pidfd, int cgroup)
{
	pid_t pid = clone3(flags, pidfd, cgroup);

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

/* The exit status of `pid`, 128 + the signal that ended it, or -1. */
static int wait_for(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int write_at(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
	ssize_t done;
	int saved;

	if (fd < 0)
		return -1;
	done = write(fd, text, strlen(text));
	saved = errno;
	close(fd);
	errno = saved;
	return done == (ssize_t)strlen(text) ? 0 : -1;
}

static int read_at(int dir, const char *name, char *buffer, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t done;

	if (fd < 0)
		return -1;
	done = read(fd, buffer, size - 1);
	close(fd);
	if (done < 0)
		return -1;
	buffer[done] = 0;
	return 0;
}

static int unexpected(const char *what)
{
	snprintf(detail, sizeof(detail), "%s", what);
	return EPROTO;
}

/* namespaces(7) */

static int probe_pid_namespace(void)
{
	pid_t pid = clone3(CLONE_NEWPID, NULL, 0);

	if (pid < 0)
		return errno;
	if (pid == 0)
		_exit(getpid() == 1 ? 0 : 1);
	return wait_for(pid) ? unexpected("its first process is not PID 1") : 0;
}

static int private_mounts(void)
{
	if (unshare(CLONE_NEWNS) || mount("", "/", NULL, OLD_MS_REC | OLD_MS_PRIVATE, NULL))
		return errno;
	return 0;
}

static int probe_network_namespace(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd;

	if (unshare(CLONE_NEWNET))
		return errno;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		return errno;
	return 0;
}

static int probe_ipc_namespace(void)
{
	int id;

	if (unshare(CLONE_NEWIPC))
		return errno;
	id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	if (id >= 0)
		shmctl(id, IPC_RMID, NULL);
	return id < 0 && errno != ENOSYS ? errno : 0;
}

static int probe_uts_namespace(void)
{
	return unshare(CLONE_NEWUTS) || sethostname("probe", 5) ? errno : 0;
}

static int probe_cgroup_namespace(void)
{
	return unshare(CLONE_NEWCGROUP) ? errno : 0;
}

/* A descriptor of a new user namespace in which 0 is MAP_UID outside; -1 and errno. */
static int user_namespace(void)
{
	char path[64], map[64];
	pid_t pid = pausing_child(CLONE_NEWUSER, NULL, 0);
	int fd = -1, saved;

	if (pid < 0)
		return -1;
	snprintf(map, sizeof(map), "0 %d 1", MAP_UID);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
	if (write_at(AT_FDCWD, path, map) == 0) {
		snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
		if (write_at(AT_FDCWD, path, map) == 0) {
			snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
			fd = open(path, O_RDONLY | O_CLOEXEC);
		}
	}
	saved = errno;
	kill(pid, SIGKILL);
	wait_for(pid);
	errno = saved;
	return fd;
}

static int probe_user_namespace(void)
{
	return user_namespace() < 0 ? errno : 0;
}

/* Mounts: fsopen(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2) */

static int new_tmpfs(const char *size, const char *inodes)
{
	int context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);

	if (context < 0)
		return -1;
	if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", size, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", inodes, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	return syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
}

static int probe_new_mount_api(void)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	int failed = private_mounts(), tmpfs, tree;

	if (failed)
		return failed;
	tmpfs = new_tmpfs("64k", "8");
	if (tmpfs < 0)
		return errno;
	tree = syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return errno;
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &read_only, sizeof(read_only)))
		return errno;
	if (syscall(SYS_move_mount, tmpfs, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH))
		return errno;
	return open("/proc/x", O_CREAT | O_WRONLY | O_CLOEXEC, 0600) < 0 ? errno : 0;
}

/* Whether the detached mount `tree` shows its root's owner through a user namespace. */
static int idmap(int tree)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP};
	struct stat before, after;
	int ns = user_namespace();

	if (ns < 0)
		return errno;
	attr.userns_fd = ns;
	if (fstat(tree, &before) || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) ||
	    fstat(tree, &after))
		return errno;
	if (before.st_uid == 0 && after.st_uid != MAP_UID)
		return unexpected("the owner is not mapped");
	return 0;
}

static int probe_idmapped_mounts_tmpfs(void)
{
	int failed = private_mounts(), tree;

	if (failed)
		return failed;
	tree = new_tmpfs("64k", "8");
	return tree < 0 ? errno : idmap(tree);
}

/* The state directory, or the nearest directory above it that is there already. */
static int open_state(int flags)
{
	char path[PATH_MAX];
	int fd;

	if (strlen(state_dir) >= sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(path, state_dir);
	while ((fd = open(path, flags | O_DIRECTORY | O_CLOEXEC)) < 0 && errno == ENOENT && strlen(path) > 1) {
		char *slash = strrchr(path, '/');

		if (!slash)
			break;
		slash[slash == path] = 0;
	}
	return fd;
}

static int probe_idmapped_mounts_state(void)
{
	int failed = private_mounts(), dir, tree;

	if (failed)
		return failed;
	dir = open_state(O_PATH);
	if (dir < 0)
		return errno;
	tree = syscall(SYS_open_tree, dir, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	return tree < 0 ? errno : idmap(tree);
}

static int probe_tmpfs_quota(void)
{
	static const char block[16384];
	char name[] = "a";
	int failed = private_mounts(), tree, fd, count;
	size_t written = 0;

	if (failed)
		return failed;
	tree = new_tmpfs("64k", "4");
	if (tree < 0)
		return errno;
	fd = openat(tree, "f", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	while (written < 2 * 65536 && write(fd, block, sizeof(block)) == sizeof(block))
		written += sizeof(block);
	if (written > 65536)
		return unexpected("more was written than size allows");
	for (count = 0; count < 8; count++, name[0]++)
		if (mknodat(tree, name, S_IFREG | 0600, 0))
			break;
	return count < 4 ? 0 : unexpected("more files were made than nr_inodes allows");
}

/* Descriptors and processes */

static int probe_openat2(void)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
	int root = open("/proc", O_PATH | O_CLOEXEC);

	if (root < 0)
		return errno;
	/* Were the root not held, this would be /proc/self of the real root's parent, and fail. */
	return syscall(SYS_openat2, root, "../../self/status", &how, sizeof(how)) < 0 ? errno : 0;
}

static int probe_close_range(void)
{
	int fd = dup(STDERR_FILENO);

	if (fd < 0 || syscall(SYS_close_range, fd, fd, 0))
		return errno;
	return fcntl(fd, F_GETFD) < 0 ? 0 : unexpected("the descriptor is still open");
}

static int probe_pidfd(void)
{
	int pidfd = -1;
	pid_t pid = pausing_child(CLONE_PIDFD, &pidfd, 0);
	siginfo_t info;

	if (pid < 0)
		return errno;
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0))
		return errno;
	return waitid(P_PIDFD, pidfd, &info, WEXITED) ? errno : 0;
}

/* Control groups, v2: Documentation/admin-guide/cgroup-v2.rst */

static int child_in_cgroup(int *dir, pid_t *pid)
{
	*dir = open(cgroup_dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	if (*dir < 0)
		return errno;
	*pid = pausing_child(CLONE_INTO_CGROUP, NULL, *dir);
	return *pid < 0 ? errno : 0;
}

static int probe_clone_into_cgroup(void)
{
	char procs[64];
	pid_t pid;
	int dir, failed = child_in_cgroup(&dir, &pid);

	if (failed)
		return failed;
	failed = read_at(dir, "cgroup.procs", procs, sizeof(procs)) ? errno : 0;
	kill(pid, SIGKILL);
	wait_for(pid);
	if (failed)
		return failed;
	return atoi(procs) == pid ? 0 : unexpected("the child is not in its cgroup");
}

static int probe_cgroup_kill(void)
{
	pid_t pid;
	int dir, failed = child_in_cgroup(&dir, &pid);

	if (failed)
		return failed;
	if (write_at(dir, "cgroup.kill", "1")) {
		failed = errno;
		kill(pid, SIGKILL);
	}
	return wait_for(pid) == 128 + SIGKILL ? failed : unexpected("the child was not killed");
}

static int probe_cgroup_freeze(void)
{
	char events[128] = "";
	pid_t pid;
	int dir, failed = child_in_cgroup(&dir, &pid), tries;

	if (failed)
		return failed;
	if (write_at(dir, "cgroup.freeze", "1"))
		failed = errno;
	for (tries = 0; !failed && !strstr(events, "frozen 1"); tries++) {
		if (read_at(dir, "cgroup.events", events, sizeof(events)))
			failed = errno;
		else if (tries == 1000)
			failed = unexpected("the cgroup did not freeze");
		else
			usleep(100);
	}
	write_at(dir, "cgroup.freeze", "0");
	kill(pid, SIGKILL);
	wait_for(pid);
	return failed;
}

static int probe_io_accounting(void)
{
	static char block[4096] __attribute__((aligned(4096)));
	char path[64], stat[4096];
	int dir = open(cgroup_dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC), state;
	pid_t pid;

	if (dir < 0 || read_at(dir, "io.stat", stat, sizeof(stat)))
		return errno;
	state = open_state(O_RDONLY);
	if (state < 0)
		return errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", state);
	pid = clone3(CLONE_INTO_CGROUP, NULL, dir);
	if (pid < 0)
		return errno;
	if (pid == 0) {
		int fd = open(path, O_TMPFILE | O_WRONLY | O_DIRECT | O_CLOEXEC, 0600);

		_exit(fd < 0 || write(fd, block, sizeof(block)) != sizeof(block));
	}
	if (wait_for(pid)) {
		snprintf(detail, sizeof(detail), "io.stat is there; the state directory takes no direct write to try it");
		return 0;
	}
	if (read_at(dir, "io.stat", stat, sizeof(stat)))
		return errno;
	if (!strstr(stat, "wbytes="))
		snprintf(detail, sizeof(detail), "io.stat is there; the state directory is on no block device that it counts");
	return 0;
}

/* Filters: seccomp(2), landlock(7) */

static int answer_getppid(unsigned int action, unsigned int flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = 4, .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static int probe_seccomp_filter(void)
{
	uint32_t action = SECCOMP_RET_KILL_PROCESS;

	if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) ||
	    answer_getppid(SECCOMP_RET_ERRNO | ECHRNG, 0))
		return errno;
	return syscall(SYS_getppid) == -1 && errno == ECHRNG ? 0 : unexpected("the filter was not heeded");
}

static int probe_seccomp_notify(void)
{
	struct seccomp_notif request = {0};
	struct seccomp_notif_resp response = {0};
	int listener = answer_getppid(SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER);
	pid_t pid;

	if (listener < 0)
		return errno;
	pid = fork();
	if (pid < 0)
		return errno;
	if (pid == 0)
		_exit(syscall(SYS_getppid) == FORGED_PID ? 0 : 1);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request))
		return errno;
	response.id = request.id;
	response.val = FORGED_PID;
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response))
		return errno;
	return wait_for(pid) ? unexpected("the answer did not arrive") : 0;
}

static int probe_landlock(void)
{
	struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_READ_DIR};
	int abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION), ruleset;

	if (abi < 0)
		return errno;
	ruleset = syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
	if (ruleset < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_landlock_restrict_self, ruleset, 0))
		return errno;
	if (open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC) >= 0 || errno != EACCES)
		return unexpected("the rules were not heeded");
	snprintf(detail, sizeof(detail), "ABI %d", abi);
	return 0;
}

/* The rest */

static int probe_keyrings(void)
{
	return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 ? errno : 0;
}

static int probe_task_io(void)
{
	char path[64], text[256];

	snprintf(path, sizeof(path), "/proc/%d/io", getppid());
	if (read_at(AT_FDCWD, path, text, sizeof(text)))
		return errno;
	return strstr(text, "write_bytes:") ? 0 : unexpected("write_bytes is not in it");
}

static int probe_bpf(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};

	return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr)) < 0 ? errno : 0;
}

static int probe_ia32(void)
{
#ifdef __x86_64__
	long result;

	/* getpid, by its 32-bit number; without CONFIG_IA32_EMULATION this is SIGSEGV. */
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
	return result == getpid() ? 0 : unexpected("int 0x80 is not answered");
#else
	return ENOSYS;
#endif
}

/* What a probe must survive; tried only when named. */

static int probe_test_hang(void)
{
	pausing_child(0, NULL, 0);
	for (;;)
		pause();
}

static int probe_test_crash(void)
{
	raise(SIGSEGV);
	return 0;
}

static const struct probe {
	const char *name;
	int (*run)(void);
	int wants_cgroup;
	int only_named;
} probes[] = {
	{"pid_namespace", probe_pid_namespace, 0, 0},
	{"mount_namespace", private_mounts, 0, 0},
	{"network_namespace", probe_network_namespace, 0, 0},
	{"ipc_namespace", probe_ipc_namespace, 0, 0},
	{"uts_namespace", probe_uts_namespace, 0, 0},
	{"cgroup_namespace", probe_cgroup_namespace, 0, 0},
	{"user_namespace", probe_user_namespace, 0, 0},
	{"new_mount_api", probe_new_mount_api, 0, 0},
	{"idmapped_mounts_tmpfs", probe_idmapped_mounts_tmpfs, 0, 0},
	{"idmapped_mounts_state", probe_idmapped_mounts_state, 0, 0},
	{"tmpfs_quota", probe_tmpfs_quota, 0, 0},
	{"openat2", probe_openat2, 0, 0},
	{"close_range", probe_close_range, 0, 0},
	{"pidfd", probe_pidfd, 0, 0},
	{"clone_into_cgroup", probe_clone_into_cgroup, 1, 0},
	{"cgroup_kill", probe_cgroup_kill, 1, 0},
	{"cgroup_freeze", probe_cgroup_freeze, 1, 0},
	{"io_accounting", probe_io_accounting, 1, 0},
	{"seccomp_filter", probe_seccomp_filter, 0, 0},
	{"seccomp_notify", probe_seccomp_notify, 0, 0},
	{"landlock", probe_landlock, 0, 0},
	{"keyrings", probe_keyrings, 0, 0},
	{"task_io", probe_task_io, 0, 0},
	{"bpf", probe_bpf, 0, 0},
	{"ia32", probe_ia32, 0, 0},
	{"test_hang", probe_test_hang, 0, 1},
	{"test_crash", probe_test_crash, 0, 1},
};

static void print(const char *name, int error, const char *text)
{
	printf("%s %d %s\n", name, error, *text ? text : error ? strerror(error) : "");
	fflush(stdout);
}

static int wanted(const struct probe *probe, int count, char **names)
{
	if (!count)
		return !probe->only_named;
	while (count--)
		if (!strcmp(names[count], probe->name))
			return 1;
	return 0;
}

/* Waits for the child's end until the clock is up, then kills its process group. */
static void run(const struct probe *probe)
{
	struct timespec limit = {.tv_sec = PROBE_SECONDS};
	siginfo_t info;
	sigset_t child;
	pid_t pid;
	int status;

	if (probe->wants_cgroup && !*cgroup_dir)
		return print(probe->name, ENOENT, "there is no cgroup v2 to try it in");
	pid = fork();
	if (pid < 0)
		return print(probe->name, errno, "fork");
	if (pid == 0) {
		int error;

		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigemptyset(&child);
		sigprocmask(SIG_SETMASK, &child, NULL);
		error = probe->run();
		print(probe->name, error, detail);
		_exit(0);
	}
	setpgid(pid, pid);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	/* SIGCHLD is blocked, so it stays pending however early the child ends. */
	while (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != pid) {
		if (sigtimedwait(&child, NULL, &limit) < 0 && errno == EAGAIN) {
			print(probe->name, ETIMEDOUT, "gave no answer within 2 s");
			break;
		}
		info.si_pid = 0;
	}
	kill(-pid, SIGKILL);
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
		snprintf(detail, sizeof(detail), "ended by signal %d", WTERMSIG(status));
		print(probe->name, EPROTO, detail);
		detail[0] = 0;
	}
}

int main(int argc, char **argv)
{
	sigset_t child;
	size_t i;

	if (argc < 3) {
		fprintf(stderr, "usage: supervisor-probe STATE_DIR CGROUP [NAME...]\n");
		return 2;
	}
	state_dir = argv[1];
	cgroup_dir = argv[2];
	syscall(SYS_close_range, 3, ~0U, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_SETMASK, &child, NULL);
	for (i = 0; i < sizeof(probes) / sizeof(*probes); i++)
		if (wanted(&probes[i], argc - 3, argv + 3))
			run(&probes[i]);
	return 0;
}
