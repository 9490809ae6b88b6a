/* flood CALLS EXECS: as many getppid(2) calls from two threads, while as many children execute this program. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long calls;

static void *call(void *unused)
{
	(void)unused;
	for (long i = 0; i < calls / 2; i++)
		syscall(SYS_getppid);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	long execs = argc > 2 ? atol(argv[2]) : 0;

	if (argc < 3)
		return 0;
	calls = atol(argv[1]);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, call, NULL))
			return 1;
	for (long i = 0; i < execs; i++) {
		pid_t pid = vfork();
		int status;

		if (pid < 0)
			return 2;
		if (!pid) {
			execl(argv[0], argv[0], NULL);
			_exit(3);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			return 4;
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("done\n");
	return 0;
}
