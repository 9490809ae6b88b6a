// SPDX-License-Identifier: Apache-2.0
/* Control groups, v2: Documentation/admin-guide/cgroup-v2.rst */
#ifndef SUPERVISOR_PROBE_CGROUPS_H
#define SUPERVISOR_PROBE_CGROUPS_H

#include <stdlib.h>

#include "probe_common.h"
#include "probe_mounts.h"

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
		snprintf(detail, sizeof(detail),
			 "io.stat is there; the state directory takes no direct write to try it");
		return 0;
	}
	if (read_at(dir, "io.stat", stat, sizeof(stat)))
		return errno;
	if (!strstr(stat, "wbytes="))
		snprintf(detail, sizeof(detail),
			 "io.stat is there; the state directory is on no block device that it "
			 "counts");
	return 0;
}

#endif
