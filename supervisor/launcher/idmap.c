// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

static int write_map(pid_t pid, const char *name, uint32_t inside, uint32_t outside)
{
	char path[64], text[64];
	int fd, length;
	ssize_t n;

	snprintf(path, sizeof(path), "%d/%s", pid, name);
	fd = openat(launcher.proc, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	length = snprintf(text, sizeof(text), "%u %u 1", inside, outside);
	n = write(fd, text, (size_t)length);
	close(fd);
	return n == length ? 0 : -1;
}

/* A user namespace that only serves as a mapping for mount_setattr(2): on disk `uid`, in the run
 * `host_uid`. */
int idmap_namespace(uint32_t uid, uint32_t gid, uint32_t host_uid, uint32_t host_gid)
{
	struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
	int ready[2];
	int fd = -1;
	char path[64];
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC))
		return -1;
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0) {
		char end;

		close(ready[1]);
		if (read(ready[0], &end, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(ready[0]);
	if (pid > 0) {
		snprintf(path, sizeof(path), "%d/ns/user", pid);
		if (!write_map(pid, "uid_map", uid, host_uid) &&
		    !write_map(pid, "gid_map", gid, host_gid))
			fd = openat(launcher.proc, path, O_RDONLY | O_CLOEXEC);
	}
	close(ready[1]);
	if (pid > 0) {
		int error = errno;

		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		errno = error;
	}
	return fd;
}
