// SPDX-License-Identifier: Apache-2.0
/*
 * The run's init, PID 1 of its pid namespace: starts the program, reaps orphans, passes signals on,
 * and listens to the program's seccomp filter. It keeps no descriptor of the run and answers no
 * violation: it notes it and ends, and the kernel ends every process of the namespace with it
 * (pid_namespaces(7)).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sandbox.h"

struct program {
	struct sandbox *sandbox;
	int listener; /* set by the program's side before exec; the descriptor table is shared until
			 then */
};

/* execvp(3) without its fallback to the shell; PATH is the run's own. Returns errno. */
static int execute(const struct plan *plan)
{
	const char *program = plan->argv[0];
	const char *path = NULL;
	int error = ENOENT;

	if (strchr(program, '/')) {
		execve(program, plan->argv, plan->envp);
		return errno;
	}
	for (char **entry = plan->envp; *entry; entry++) {
		if (!strncmp(*entry, "PATH=", 5))
			path = *entry + 5;
	}
	if (!path || !*program)
		return ENOENT;
	for (;;) {
		char candidate[4096];
		const char *end = strchrnul(path, ':');
		int length = snprintf(candidate, sizeof(candidate), "%.*s/%s", (int)(end - path),
				      path, program);

		if (length > 0 && (size_t)length < sizeof(candidate)) {
			execve(candidate, plan->argv, plan->envp);
			if (errno == EACCES)
				error = EACCES;
			else if (errno != ENOENT && errno != ENOTDIR)
				return errno;
		}
		if (!*end)
			return error;
		path = end + 1;
	}
}

static void reset_signals(void)
{
	sigset_t none;

	/* Dispositions were reset when the launcher began; only the mask is ours. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Runs on a stack of its own in init's memory, as after vfork(2), until it executes the program or
 * fails. */
static int program_main(void *arg)
{
	struct program *program = arg;
	struct sandbox *sandbox = program->sandbox;
	const struct plan *plan = sandbox->plan;
	struct report *report = sandbox->report;

	setsid();
	if ((plan->w.flags & PLAN_TERMINAL) && ioctl(0, TIOCSCTTY, 0))
		sandbox_fail(report, STAGE_TERMINAL, 0, errno);
	if (!(plan->w.flags & PLAN_PID_NS))
		user_set_up(sandbox);
	/* The program's alone: init still writes and reads through a /proc that no rule names. */
	landlock_set_up(sandbox);
	for (uint32_t i = 0; i < plan->w.rlimit_count; i++) {
		struct rlimit limit = {plan->rlimits[i].soft, plan->rlimits[i].hard};

		if (setrlimit((__rlimit_resource_t)plan->rlimits[i].resource, &limit))
			sandbox_fail(report, STAGE_RLIMIT, (int)i, errno);
	}
	umask(plan->w.umask);
	if (chdir(plan->cwd))
		sandbox_fail(report, STAGE_CWD, 0, errno);
	reset_signals();
	/* Last, since the filter need not allow any of the above. */
	if (plan->w.filter_count) {
		struct sock_fprog filter = {(unsigned short)plan->w.filter_count, plan->filter};
		bool notify = plan->w.flags & PLAN_NOTIFY;
		long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
				  notify ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0, &filter);

		if (rc < 0)
			sandbox_fail(report, STAGE_SECCOMP, 0, errno);
		if (notify)
			program->listener = (int)rc;
	}
	sandbox_fail(report, STAGE_EXEC, 0, execute(plan));
}

static void read_comm(int proc_fd, int pid, char comm[16])
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "%d/comm", pid);
	fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t n = read(fd, comm, 15);

		if (n > 0)
			comm[comm[n - 1] == '\n' ? n - 1 : n] = 0;
		close(fd);
	}
}

/* All that kill(2) reaches with -1 is the run's: in a pid namespace of its own, or by a uid of its
 * own. As root among the host's processes it would be the host; there the daemon ends the rest. */
static void end_everything(const struct sandbox *sandbox, pid_t caller)
{
	uint32_t flags = sandbox->plan->w.flags;

	if ((flags & PLAN_PID_NS) || !(flags & PLAN_AS_ROOT))
		kill(-1, SIGKILL);
	else if (caller > 0)
		kill(caller, SIGKILL);
}

/*
 * What must kill: note it and end; seccomp_unotify(2). The call never takes effect, for it is never
 * answered. A caller that was killed or interrupted before we looked has withdrawn its notification
 * (ENOENT), and with it the evidence: that something forbidden was tried is certain all the same.
 */
static void on_violation(struct sandbox *sandbox, int listener)
{
	struct report *report = sandbox->report;
	struct violation_wire *violation = &report->violations[0];
	struct seccomp_notif notif = {0};
	struct timespec now;

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &notif)) {
		if (errno == EINTR)
			return;
		if (errno != ENOENT)
			_exit(125);
		notif.data.nr = -1;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	violation->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	violation->arch = notif.data.arch;
	violation->nr = notif.data.nr;
	violation->pid = (int32_t)notif.pid;
	for (int i = 0; i < 6; i++)
		violation->args[i] = notif.data.args[i];
	if (notif.pid)
		read_comm(sandbox->proc_fd, (int)notif.pid, violation->comm);
	report->violation_count = 1;
	/*
	 * First, for our exit closes the listener, which answers the call with ENOSYS, before it
	 * ends the namespace: in between its caller would run on. What is being forked meets the
	 * signal too.
	 */
	end_everything(sandbox, (pid_t)notif.pid);
	_exit(124);
}

static void reap(struct report *report, pid_t program)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
		if (pid == program) {
			report->program_status = status;
			report->program_done = 1;
			_exit(0);
		}
	}
}

static void pass_on(int signals, struct report *report, pid_t program)
{
	struct signalfd_siginfo info[16];
	ssize_t n = read(signals, info, sizeof(info));

	for (size_t i = 0; n > 0 && i < (size_t)n / sizeof(info[0]); i++) {
		int number = (int)info[i].ssi_signo;

		if (number == SIGCHLD)
			continue;
		/* SIGKILL and SIGSTOP cannot be caught here; the last two real-time signals stand
		 * for them. */
		if (number == SIGRTMAX)
			number = SIGKILL;
		else if (number == SIGRTMAX - 1)
			number = SIGSTOP;
		/*
		 * To its process group, as a terminal would: a shell that waits for its child does
		 * not die of a SIGINT that the child has not got.
		 */
		kill(-program, number);
	}
	reap(report, program);
}

static void close_all_but(int a, int b, int c)
{
	int keep[3] = {a, b, c};
	int from = 0;

	for (int i = 0; i < 3; i++) {
		for (int j = i; j > 0 && keep[j - 1] > keep[j]; j--) {
			int swap = keep[j];

			keep[j] = keep[j - 1];
			keep[j - 1] = swap;
		}
	}
	for (int i = 0; i < 3; i++) {
		if (keep[i] < 0)
			continue;
		if (keep[i] > from)
			syscall(SYS_close_range, (unsigned int)from, (unsigned int)keep[i] - 1, 0);
		from = keep[i] + 1;
	}
	syscall(SYS_close_range, (unsigned int)from, ~0u, 0);
}

/* Beside 0, 1 and 2. */
static void keep_only(int a, int b)
{
	int low = a < b ? a : b;
	int high = a < b ? b : a;

	if (low > 3)
		syscall(SYS_close_range, 3, (unsigned int)low - 1, 0);
	if (high > low + 1)
		syscall(SYS_close_range, (unsigned int)low + 1, (unsigned int)high - 1, 0);
	syscall(SYS_close_range, (unsigned int)high + 1, ~0u, 0);
}

/* Onto 0, 1 and 2, in an order that loses none of them. */
static void set_up_stdio(struct sandbox *sandbox)
{
	const struct plan_wire *w = &sandbox->plan->w;
	int from[3] = {w->fd_stdin, w->fd_stdout, w->fd_stderr};

	for (int i = 0; i < 3; i++) {
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 3);
		if (from[i] < 0)
			sandbox_fail(sandbox->report, STAGE_STDIO, i, errno);
	}
	if (sandbox->proc_fd < 3)
		sandbox->proc_fd = fcntl(sandbox->proc_fd, F_DUPFD_CLOEXEC, 3);
	if (sandbox->sync_fd < 3)
		sandbox->sync_fd = fcntl(sandbox->sync_fd, F_DUPFD_CLOEXEC, 3);
	for (int i = 0; i < 3; i++) {
		if (dup2(from[i], i) < 0)
			sandbox_fail(sandbox->report, STAGE_STDIO, i, errno);
		close(from[i]);
	}
}

_Noreturn void init_main(struct sandbox *sandbox)
{
	static char stack[256 * 1024] __attribute__((aligned(16)));
	struct report *report = sandbox->report;
	struct program program = {.sandbox = sandbox, .listener = -1};
	struct pollfd polled[2];
	sigset_t all;
	int signals;
	pid_t pid;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	set_up_stdio(sandbox);
	if (sandbox->plan->w.flags & PLAN_PID_NS) {
		user_set_up(sandbox);
	} else if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)) {
		sandbox_fail(report, STAGE_USER, 6, errno);
	}
	/* What building the root needed goes first: the filter's listener must fit under a low
	 * RLIMIT_NOFILE. */
	keep_only(sandbox->sync_fd, sandbox->proc_fd);
	/* From here on we die with the launcher; if it went before, nobody reads the pipe. */
	if (poll(&(struct pollfd){.fd = sandbox->sync_fd}, 1, 0))
		sandbox_fail(report, STAGE_LAUNCHER, 0, EPIPE);
	signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		sandbox_fail(report, STAGE_FORK, 0, errno);
	pid = clone(program_main, stack + sizeof(stack),
		    CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, &program);
	if (pid < 0)
		sandbox_fail(report, STAGE_FORK, 1, errno);
	if (report->stage)
		_exit(125);
	/* With the last of our copies of the pipe closed, the launcher knows that the program runs.
	 */
	close_all_but(signals, program.listener, sandbox->proc_fd);
	reap(report, pid);
	polled[0] = (struct pollfd){.fd = signals, .events = POLLIN};
	polled[1] = (struct pollfd){.fd = program.listener, .events = POLLIN};
	for (;;) {
		if (poll(polled, 2, -1) < 0)
			continue;
		if (polled[1].revents & POLLIN)
			on_violation(sandbox, program.listener);
		if (polled[1].revents & (POLLHUP | POLLERR))
			polled[1].fd = -1; /* the last process under the filter is gone */
		if (polled[0].revents & POLLIN)
			pass_on(signals, report, pid);
	}
}
