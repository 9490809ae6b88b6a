// SPDX-License-Identifier: Apache-2.0
/*
 * The launcher: one thread, one socket to the daemon, any number of runs. It reads top-down as what
 * happens to a request: receive, parse, clone; then wait for the start and the end, and tell them.
 * It ends when the daemon's end of the socket closes, and every run with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

struct launcher launcher;

_Noreturn void die(const char *what)
{
	fprintf(stderr, "supervisor-launcher: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Whose request it was, as far as it can be told: the daemon waits for an answer about that run. */
static uint64_t run_of(const uint8_t *packet, size_t size)
{
	struct request_header header = {0};

	memcpy(&header, packet, size < sizeof(header) ? size : sizeof(header));
	return header.run;
}

/* Returns false when the daemon is gone. */
static bool receive(void)
{
	static uint8_t packet[MAX_PACKET];
	static union {
		char space[CMSG_SPACE(sizeof(int) * 253)];
		struct cmsghdr align;
	} control;
	struct iovec part = {packet, sizeof(packet)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.space,
				 .msg_controllen = sizeof(control.space)};
	int fds[253];
	size_t fd_count = 0;
	ssize_t size = recvmsg(launcher.control, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (size < 0)
		return errno == EINTR || errno == EAGAIN;
	if (size == 0 && !message.msg_controllen)
		return false;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header;
	     header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
			fd_count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(header), fd_count * sizeof(int));
		}
	}
	if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || fd_count > MAX_FDS)
		reply_failed(run_of(packet, (size_t)size), STAGE_REQUEST, 3, E2BIG);
	else
		on_request(packet, (size_t)size, fds, fd_count);
	for (size_t i = 0; i < fd_count; i++)
		close(fds[i]);
	return true;
}

/*
 * A root with nothing of the host in it: what a new mount namespace copies is then a handful of
 * mounts, and what a run could reach of ours is nothing. Templates come to lie under /t; runs build
 * their root on /r.
 */
static void private_root(void)
{
	launcher.host_mount_ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	launcher.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (launcher.host_mount_ns < 0 || launcher.proc < 0)
		die("/proc");
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("private mount namespace");
	/* Over /tmp, in our namespace only: any directory that surely exists would do. */
	if (mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=64k,nr_inodes=128,mode=755") ||
	    chdir("/tmp") || mkdir("t", 0755) || mkdir("r", 0755) || mkdir("empty", 0755) ||
	    mkdir("proc", 0755) || mknod("null", S_IFREG | 0444, 0) ||
	    mount("/proc", "proc", NULL, MS_BIND, NULL))
		die("private root");
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("pivot_root");
	close(launcher.proc);
	launcher.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (launcher.proc < 0)
		die("/proc");
}

static void set_up_process(void)
{
	/* struct sigaction as the kernel has it; all zero is SIG_DFL. */
	static const unsigned long defaults[8];
	struct rlimit files;
	sigset_t none;

	/* Past the C library, which keeps two real-time signals to itself and would leave them as
	 * they came. */
	for (int number = 1; number < 65; number++)
		syscall(SYS_rt_sigaction, number, &defaults, NULL, 8);
	/* The daemon decides when we end; a terminal's signals are for it alone. */
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(0);
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		die("PR_SET_DUMPABLE");
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (setpriority(PRIO_PROCESS, 0, 0) && errno != EACCES)
		die("setpriority");
}

/* It comes as standard input; what is launched finds nothing there. */
static void take_control_socket(void)
{
	int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);

	launcher.control = fcntl(0, F_DUPFD_CLOEXEC, 3);
	if (launcher.control < 0 || nothing < 0 || dup2(nothing, 0) < 0)
		die("control socket");
	if (nothing > 2)
		close(nothing);
}

static void kill_all(void)
{
	for (unsigned int i = 0; i < launcher.used; i++) {
		if (launcher.runs[i].pid)
			syscall(SYS_pidfd_send_signal, launcher.runs[i].pidfd, SIGKILL, NULL, 0);
	}
	while (launcher.alive && wait(NULL) > 0)
		launcher.alive--;
}

int main(int argc, char **argv)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};

	if (argc != 1) {
		fprintf(stderr,
			"%s: started by the supervisor, with a SOCK_SEQPACKET socket as standard "
			"input\n",
			argv[0]);
		return 2;
	}
	launcher.title = argv[0];
	launcher.title_size = strlen(argv[0]);
	set_up_process();
	take_control_socket();
	private_root();
	launcher.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (launcher.epoll < 0 ||
	    epoll_ctl(launcher.epoll, EPOLL_CTL_ADD, launcher.control, &event))
		die("epoll");
	for (;;) {
		struct epoll_event events[64];
		int count = epoll_wait(launcher.epoll, events, 64, -1);

		/* A run's start is told before its end: both may be in one batch, in either
		 * order. */
		for (int i = 0; i < count; i++) {
			if (events[i].data.u64 != UINT64_MAX && !(events[i].data.u64 & 1))
				run_started(&launcher.runs[events[i].data.u64 >> 1]);
		}
		for (int i = 0; i < count; i++) {
			if (events[i].data.u64 != UINT64_MAX && (events[i].data.u64 & 1))
				run_ended(&launcher.runs[events[i].data.u64 >> 1]);
		}
		for (int i = 0; i < count; i++) {
			if (events[i].data.u64 == UINT64_MAX && !receive()) {
				kill_all();
				return 0;
			}
		}
	}
}
