// SPDX-License-Identifier: Apache-2.0
/*
 * supervisor-probe STATE_DIR CGROUP [NAME...]
 *
 * Finds out what this kernel can do by doing it, and prints one line a feature: "NAME ERRNO
 * DETAIL". ERRNO 0 is available. CGROUP is an empty cgroup v2 directory made for this program (""
 * where there is none); the caller removes it. With NAMEs only those are tried.
 *
 * Every probe runs in a child of its own, which may hang or crash: after PROBE_SECONDS it and what
 * it started are killed. Namespaces, mounts and keyrings die with that child; files have no name.
 * Nothing is left behind.
 */
#define _GNU_SOURCE
#include "probe_cgroups.h"
#include "probe_common.h"
#include "probe_mounts.h"
#include "probe_processes.h"

#include <time.h>

#define PROBE_SECONDS 2

/* What a probe must survive; tried only when named. */

static int probe_test_hang(void)
{
	pausing_child(0, NULL, 0);
	while (pause())
		;
	return 0;
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

/* The end of a killed process group, whose orphans come to us; what sleeps uninterruptibly is left
 * to its parent's end. */
static int reap(pid_t leader)
{
	int status = 0, found, tries = 0;
	pid_t pid;

	while ((pid = waitpid(-leader, &found, WNOHANG)) >= 0 && tries < 200) {
		if (pid == leader)
			status = found;
		if (pid == 0) {
			tries++;
			usleep(1000);
		}
	}
	return status;
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
	status = reap(pid);
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
