/* Programs that try to live on after their run: outlive NAME TOKEN. TOKEN stays in the arguments of every process. */
#include "attack.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void deaf(void)
{
	sigset_t all;

	for (int number = 1; number < 65; number++)
		signal(number, SIG_IGN);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	prctl(PR_SET_PDEATHSIG, 0);
}

static _Noreturn void stay(void)
{
	for (;;)
		sleep(1000);
}

/* The program ends at once with 0; what it leaves has no tie to it. */
static void double_fork(void)
{
	for (int i = 0; i < 5; i++) {
		if (fork() == 0) {
			setsid();
			if (fork() == 0) {
				deaf();
				for (int fd = 0; fd < 3; fd++)
					close(fd);
				stay();
			}
			_exit(0);
		}
	}
}

/* As before, but holding on to the output. */
static void hold_output(void)
{
	if (fork() == 0) {
		setsid();
		deaf();
		stay();
	}
}

static void ignore_signals(void)
{
	deaf();
	stay();
}

static void parent_death(void)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, 0);
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		if (fork() == 0) {
			deaf();
			stay();
		}
		stay();
	}
	stay();
}

/* Every process forks and dies, so that no list of pids is ever right. */
static void fork_storm(void)
{
	for (int i = 0; i < 8; i++)
		if (fork() == 0)
			break;
	deaf();
	for (;;)
		if (fork() > 0)
			_exit(0);
}

/* vfork(2) leaves the parent in an uninterruptible wait for a child that does nothing. */
static _Noreturn void wait_for_vfork(void)
{
	deaf();
	if (vfork() == 0)
		stay();
	stay();
}

static void uninterruptible(void)
{
	for (int i = 0; i < 4; i++)
		if (fork() == 0)
			wait_for_vfork();
	stay();
}

static void stopped(void)
{
	for (int i = 0; i < 4; i++)
		if (fork() == 0)
			for (;;)
				raise(SIGSTOP);
	raise(SIGSTOP);
	stay();
}

static void *thread_stays(void *nothing)
{
	(void)nothing;
	stay();
}

/* The main thread is gone, its process is a zombie leader that lives. */
static void leader_gone(void)
{
	pthread_t thread;

	deaf();
	for (int i = 0; i < 4; i++)
		pthread_create(&thread, NULL, thread_stays, NULL);
	pthread_exit(NULL);
}

/* Looks like nothing: another name, no arguments, no open files, cwd gone. */
static void disguised(void)
{
	if (fork() == 0) {
		setsid();
		deaf();
		prctl(PR_SET_NAME, "kworker/0:1");
		mkdir("/tmp/gone", 0700);
		if (chdir("/tmp/gone") == 0)
			rmdir("/tmp/gone");
		stay();
	}
}

static const struct { const char *name; void (*run)(void); } ways[] = {
	{ "double_fork", double_fork }, { "hold_output", hold_output }, { "ignore_signals", ignore_signals },
	{ "parent_death", parent_death }, { "fork_storm", fork_storm }, { "uninterruptible", uninterruptible },
	{ "stopped", stopped }, { "leader_gone", leader_gone }, { "disguised", disguised },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < COUNT(ways); i++) {
		if (!strcmp(argv[1], ways[i].name)) {
			printf("ready\n");
			fflush(stdout);
			ways[i].run();
			return 0;
		}
	}
	fprintf(stderr, "no way of that name\n");
	return 2;
}
