// SPDX-License-Identifier: Apache-2.0
/*
 * Who the run is: its own host uid, a user namespace that maps that one id and no other, no
 * capabilities, no new ones.
 *
 * The user namespace comes last on purpose: mount, network, pid, ipc and uts namespaces then belong
 * to the host's user namespace, so that even full capabilities inside the run's own would not reach
 * them (user_namespaces(7)).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox.h"

static int write_proc(int proc_fd, const char *path, const char *text)
{
	int fd = openat(proc_fd, path, O_WRONLY | O_CLOEXEC);
	ssize_t n;
	int error;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	error = errno;
	close(fd);
	errno = error;
	return n < 0 ? -1 : 0;
}

static int enter_user_namespace(struct sandbox *sandbox)
{
	const struct plan_wire *w = &sandbox->plan->w;
	char map[64];

	if (unshare(CLONE_NEWUSER))
		return -1;
	/* The change of uid made /proc/self root's; nobody else is in this pid namespace yet. */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
		return -1;
	if (write_proc(sandbox->proc_fd, "self/setgroups", "deny"))
		return -1;
	snprintf(map, sizeof(map), "%u %u 1", w->inner_uid, w->host_uid);
	if (write_proc(sandbox->proc_fd, "self/uid_map", map))
		return -1;
	snprintf(map, sizeof(map), "%u %u 1", w->inner_gid, w->host_gid);
	return write_proc(sandbox->proc_fd, "self/gid_map", map);
}

/* Nothing in any of the five sets, and no way back: capabilities(7). */
static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};

	for (int cap = 0; cap < 64; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) {
			if (errno == EINVAL)
				break; /* past the kernel's last one */
			return -1;
		}
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -1;
	if (prctl(PR_SET_SECUREBITS, SECURE_ALL_BITS | SECURE_ALL_LOCKS, 0, 0, 0))
		return -1;
	return (int)syscall(SYS_capset, &header, none);
}

void user_set_up(struct sandbox *sandbox)
{
	const struct plan_wire *w = &sandbox->plan->w;
	struct report *report = sandbox->report;

	/* What memfd_create(2) makes is never executable; the sysctl belongs to the pid namespace.
	 */
	if ((w->flags & PLAN_MEMFD_NOEXEC) &&
	    write_proc(sandbox->proc_fd, "sys/vm/memfd_noexec", "2"))
		sandbox_fail(report, STAGE_USER, 7, errno);
	if (w->oom_score_adj) {
		char text[16];

		snprintf(text, sizeof(text), "%d", w->oom_score_adj);
		if (write_proc(sandbox->proc_fd, "self/oom_score_adj", text))
			sandbox_fail(report, STAGE_USER, 0, errno);
	}
	if (!(w->flags & PLAN_AS_ROOT)) {
		/* The capabilities stay across setresuid(2), so that the user namespace is not made
		 * by an unprivileged user. */
		if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
			sandbox_fail(report, STAGE_USER, 1, errno);
		if (setgroups(0, NULL))
			sandbox_fail(report, STAGE_USER, 2, errno);
		if (setresgid(w->host_gid, w->host_gid, w->host_gid))
			sandbox_fail(report, STAGE_USER, 3, errno);
		if (setresuid(w->host_uid, w->host_uid, w->host_uid))
			sandbox_fail(report, STAGE_USER, 4, errno);
	}
	if ((w->flags & PLAN_USER_NS) && enter_user_namespace(sandbox))
		sandbox_fail(report, STAGE_USER_NS, 0, errno);
	if ((w->flags & PLAN_KEYRING) && syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0)
		sandbox_fail(report, STAGE_KEYRING, 0, errno);
	if ((w->flags & PLAN_NO_NEW_PRIVS) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		sandbox_fail(report, STAGE_CAPABILITIES, 0, errno);
	if (!(w->flags & PLAN_AS_ROOT) && drop_capabilities())
		sandbox_fail(report, STAGE_CAPABILITIES, 1, errno);
	/* Neither /proc/1/mem nor /proc/1/exe nor ptrace(2): our image and descriptors are not the
	 * program's to see. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		sandbox_fail(report, STAGE_CAPABILITIES, 2, errno);
	/* Cleared by every change of credentials, hence here. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		sandbox_fail(report, STAGE_CAPABILITIES, 3, errno);
}
