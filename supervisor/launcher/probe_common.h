// SPDX-License-Identifier: Apache-2.0
/* What the probes of supervisor-probe share. probe.c is its one translation unit; each probe_*.h is
 * a part of it. */
#ifndef SUPERVISOR_PROBE_COMMON_H
#define SUPERVISOR_PROBE_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

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

#endif
