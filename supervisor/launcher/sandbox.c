// SPDX-License-Identifier: Apache-2.0
/* The child of the launcher, from clone3(2) to the moment it becomes the run's init: namespaces,
 * root, user. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

_Noreturn void sandbox_fail(struct report *report, enum stage stage, int index, int error)
{
	report->index = index;
	report->error = error;
	report->stage = (int32_t)stage;
	_exit(125);
}

/* The child has copies of everything the launcher holds for other runs; keep what the plan names.
 */
static void close_the_rest(const struct sandbox *sandbox)
{
	const struct plan *plan = sandbox->plan;
	int keep[MAX_FDS * 2 + 16];
	unsigned int count = 0;
	unsigned int from = 0;

	keep[count++] = sandbox->sync_fd;
	keep[count++] = plan->w.fd_stdin;
	keep[count++] = plan->w.fd_stdout;
	keep[count++] = plan->w.fd_stderr;
	if (plan->w.flags & PLAN_MOUNT_NS)
		keep[count++] = plan->w.fd_tmpfs;
	else
		keep[count++] = sandbox->host_mount_ns;
	for (uint32_t i = 0; i < plan->w.op_count; i++) {
		if (count + 2 > sizeof(keep) / sizeof(keep[0]))
			sandbox_fail(sandbox->report, STAGE_STDIO, -1, E2BIG);
		if (plan->ops[i].w.fd >= 0)
			keep[count++] = plan->ops[i].w.fd;
		if (sandbox->idmap_fds[i] >= 0)
			keep[count++] = sandbox->idmap_fds[i];
	}
	for (unsigned int i = 1; i < count; i++) { /* few, and nearly sorted as they came */
		int fd = keep[i];
		unsigned int at = i;

		for (; at > 0 && keep[at - 1] > fd; at--)
			keep[at] = keep[at - 1];
		keep[at] = fd;
	}
	for (unsigned int i = 0; i < count; i++) {
		if ((unsigned int)keep[i] > from)
			syscall(SYS_close_range, from, (unsigned int)keep[i] - 1, 0);
		from = (unsigned int)keep[i] + 1;
	}
	syscall(SYS_close_range, from, ~0u, 0);
}

static void loopback_up(struct report *report)
{
	struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	strcpy(request.ifr_name, "lo");
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		sandbox_fail(report, STAGE_LOOPBACK, 0, errno);
	close(fd);
}

/*
 * v1 hierarchies have no CLONE_INTO_CGROUP. A task that moves itself alone ("0" into tasks, not a
 * pid into cgroup.procs) is spared cgroup_threadgroup_rwsem, whose writers wait for a grace period
 * of RCU, 10 ms and more (Linux 5.6, 9a3284fad42f "cgroup: Optimize single thread migration").
 */
static void enter_v1_cgroups(const struct sandbox *sandbox)
{
	const struct plan *plan = sandbox->plan;

	for (uint32_t i = 0; i < plan->w.v1_count; i++) {
		if (write(plan->v1_fds[i], "0", 1) != 1)
			sandbox_fail(sandbox->report, STAGE_CGROUP, (int)i, errno);
	}
}

_Noreturn void sandbox_main(struct sandbox *sandbox)
{
	const struct plan_wire *w = &sandbox->plan->w;
	struct report *report = sandbox->report;

	/* From the first: no ptrace, no look into this copy of the launcher. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	memset(sandbox->title, 0, sandbox->title_size);
	strncpy(sandbox->title, "init", sandbox->title_size);
	prctl(PR_SET_NAME, "init", 0, 0, 0);
	/* The limits hold before anything is made that counts against them. */
	enter_v1_cgroups(sandbox);
	/* The namespace's root is where the process is now. */
	if ((w->flags & PLAN_CGROUP_NS) && unshare(CLONE_NEWCGROUP))
		sandbox_fail(report, STAGE_CGROUP_NS, 0, errno);
	close_the_rest(sandbox);
	if (w->flags & PLAN_NETWORK_NS)
		loopback_up(report);
	if ((w->flags & PLAN_UTS_NS) &&
	    (sethostname(sandbox->plan->hostname, strlen(sandbox->plan->hostname)) ||
	     setdomainname("(none)", 6)))
		sandbox_fail(report, STAGE_HOSTNAME, 0, errno);
	if (w->flags & PLAN_MOUNT_NS) {
		root_set_up(sandbox);
	} else {
		if (setns(sandbox->host_mount_ns, CLONE_NEWNS))
			sandbox_fail(report, STAGE_ROOT, 2, errno);
		sandbox->proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (sandbox->proc_fd < 0)
			sandbox_fail(report, STAGE_ROOT, 3, errno);
	}
	/* Without a pid namespace the orphans come to us, and the program must not be able to end
	 * us. */
	if (!(w->flags & PLAN_PID_NS) && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		sandbox_fail(report, STAGE_USER, 5, errno);
	init_main(sandbox);
}
