// SPDX-License-Identifier: Apache-2.0
/* Descriptors, processes and the filters put on them. */
#ifndef SUPERVISOR_PROBE_PROCESSES_H
#define SUPERVISOR_PROBE_PROCESSES_H

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>

#include "probe_common.h"

#define FORGED_PID 4242

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
	return syscall(SYS_getppid) == -1 && errno == ECHRNG
		       ? 0
		       : unexpected("the filter was not heeded");
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
	int abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION),
	    ruleset;

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
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};

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

#endif
