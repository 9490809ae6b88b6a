// SPDX-License-Identifier: Apache-2.0
/* A run as the launcher sees it: cloned, started, reaped, told. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

static struct run *run_take(void)
{
	struct run *run = launcher.free;

	if (run) {
		launcher.free = run->next_free;
	} else {
		if (launcher.used == MAX_RUNS) {
			errno = EAGAIN;
			return NULL;
		}
		run = &launcher.runs[launcher.used];
		run->report = mmap(NULL, sizeof(*run->report), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (run->report == MAP_FAILED)
			return NULL;
		launcher.used++;
	}
	memset(run->report, 0, sizeof(*run->report));
	run->sync_fd = -1;
	run->pidfd = -1;
	return run;
}

static void run_put(struct run *run)
{
	run->pid = 0;
	run->next_free = launcher.free;
	launcher.free = run;
}

static uint64_t namespace_flags(uint32_t flags)
{
	return ((flags & PLAN_PID_NS) ? CLONE_NEWPID : 0) |
	       ((flags & PLAN_MOUNT_NS) ? CLONE_NEWNS : 0) |
	       ((flags & PLAN_NETWORK_NS) ? CLONE_NEWNET : 0) |
	       ((flags & PLAN_IPC_NS) ? CLONE_NEWIPC : 0) |
	       ((flags & PLAN_UTS_NS) ? CLONE_NEWUTS : 0);
}

static void watch(int fd, struct run *run, uint64_t kind)
{
	/* The low bit tells the pipe from the pidfd. */
	struct epoll_event event = {.events = EPOLLIN,
				    .data.u64 = (uint64_t)(run - launcher.runs) << 1 | kind};

	if (epoll_ctl(launcher.epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

void run_launch(uint64_t id, const struct plan *plan, const int *idmap_fds)
{
	struct run *run = run_take();
	int sync[2];
	pid_t pid;

	if (!run) {
		reply_failed(id, STAGE_CLONE, -1, errno);
		return;
	}
	if (pipe2(sync, O_CLOEXEC)) {
		reply_failed(id, STAGE_CLONE, -2, errno);
		run_put(run);
		return;
	}
	{
		struct clone_args args = {
			.flags = namespace_flags(plan->w.flags) | CLONE_PIDFD | CLONE_INTO_CGROUP,
			.pidfd = (uint64_t)(uintptr_t)&run->pidfd,
			.exit_signal = SIGCHLD,
			.cgroup = (uint64_t)plan->w.fd_cgroup,
		};

		pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	}
	if (pid == 0) {
		struct sandbox sandbox = {
			.plan = plan,
			.report = run->report,
			.sync_fd = sync[1],
			.host_mount_ns = launcher.host_mount_ns,
			.idmap_fds = idmap_fds,
			.title = launcher.title,
			.title_size = launcher.title_size,
			.proc_fd = -1,
		};

		sandbox_main(&sandbox);
	}
	close(sync[1]);
	if (pid < 0) {
		reply_failed(id, STAGE_CLONE, 0, errno);
		close(sync[0]);
		run_put(run);
		return;
	}
	run->id = id;
	run->pid = pid;
	run->sync_fd = sync[0];
	launcher.alive++;
	watch(run->pidfd, run, 1);
	watch(run->sync_fd, run, 0);
}

/* The zombie still has the account of everything it reaped; proc_pid_io(5). */
static void read_io(pid_t pid, struct reply *reply)
{
	char path[32], text[512];
	const char *at;
	ssize_t n = -1;
	int fd;

	reply->read_bytes = reply->write_bytes = -1;
	snprintf(path, sizeof(path), "%d/io", pid);
	fd = openat(launcher.proc, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	if (n <= 0)
		return;
	text[n] = 0;
	at = strstr(text, "\nread_bytes: ");
	if (at)
		reply->read_bytes = atoll(at + 13);
	at = strstr(text, "\nwrite_bytes: ");
	if (at)
		reply->write_bytes = atoll(at + 14);
}

/*
 * A closed descriptor leaves the epoll set by itself only when no child just cloned still has a
 * copy of it; until then it would report on a slot that may be another run's.
 */
static void forget(int fd)
{
	epoll_ctl(launcher.epoll, EPOLL_CTL_DEL, fd, NULL);
	close(fd);
}

/* The last copy of the pipe's other end is gone: the program has been executed, or the set-up has
 * failed. */
void run_started(struct run *run)
{
	forget(run->sync_fd);
	run->sync_fd = -1;
	if (!run->report->stage) {
		struct reply reply = {.type = REPLY_STARTED, .run = run->id, .pid = run->pid};

		send_reply(&reply, run->pidfd);
	}
}

void run_ended(struct run *run)
{
	struct reply reply = {.type = REPLY_ENDED, .run = run->id, .pid = run->pid};
	const struct report *report = run->report;
	struct rusage usage = {0};
	int status = 0;

	read_io(run->pid, &reply);
	while (wait4(run->pid, &status, __WALL, &usage) < 0 && errno == EINTR)
		;
	if (run->sync_fd >= 0)
		forget(run->sync_fd);
	forget(run->pidfd);
	reply.stage = report->stage;
	reply.index = report->index;
	reply.error = report->error;
	reply.program_status = report->program_status;
	reply.program_done = report->program_done;
	reply.init_status = status;
	reply.idmap_skipped = report->idmap_skipped;
	reply.user_us =
		(uint64_t)usage.ru_utime.tv_sec * 1000000u + (uint64_t)usage.ru_utime.tv_usec;
	reply.system_us =
		(uint64_t)usage.ru_stime.tv_sec * 1000000u + (uint64_t)usage.ru_stime.tv_usec;
	reply.violation_count =
		report->violation_count < MAX_VIOLATIONS ? report->violation_count : MAX_VIOLATIONS;
	reply.violations_lost = report->violations_lost;
	memcpy(reply.violations, report->violations, sizeof(reply.violations));
	launcher.alive--;
	run_put(run);
	send_reply(&reply, -1);
}
