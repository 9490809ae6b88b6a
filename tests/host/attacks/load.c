/* Loads of a known size, for the limits and for the accounting: load NAME [NUMBER]. Results go to standard output. */
#include "attack.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024L * 1024)

static double cpu_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* `number` milliseconds of CPU in user mode; 0: for ever. */
static int burn(long number)
{
	volatile unsigned long spin = 0;

	do {
		for (int i = 0; i < 100000; i++)
			spin += i;
	} while (!number || cpu_seconds() < number / 1e3);
	return 0;
}

/* `number` milliseconds of CPU, nearly all in the kernel. */
static int burn_system(long number)
{
	static char block[1 << 20];
	int zero = open("/dev/zero", O_RDONLY);

	while (cpu_seconds() < number / 1e3)
		if (read(zero, block, sizeof(block)) < 0)
			return 1;
	return 0;
}

static int burn_many(long number)
{
	for (long i = 1; i < number; i++)
		if (fork() == 0)
			return burn(0);
	return burn(0);
}

/* Many processes one after the other, each too short to be seen by looking now and then. */
static int burn_short(long number)
{
	(void)number;
	for (;;) {
		pid_t child = fork();

		if (child == 0)
			return burn(5);
		waitpid(child, NULL, 0);
	}
}

/* Touches `number` MiB and stays for a moment; 0: more and more. */
static int touch(long number)
{
	for (long i = 0; !number || i < number; i++) {
		char *block = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (block == MAP_FAILED)
			return 3;
		memset(block, 1, MIB);
	}
	usleep(200000);
	return 0;
}

/* A child is killed for memory, the program itself goes on. */
static int touch_child(long number)
{
	int status = 0;
	pid_t child = fork();

	(void)number;
	if (child == 0)
		return touch(0);
	waitpid(child, &status, 0);
	printf("child %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
	return 0;
}

/* `number` processes at once, this one among them. */
static int processes(long number)
{
	for (long i = 1; i < number; i++)
		if (fork() == 0) {
			pause();
			_exit(0);
		}
	usleep(300000);
	signal(SIGTERM, SIG_IGN);
	return kill(0, SIGTERM);
}

/* Forks until it may not. */
static int fork_limit(long number)
{
	long made = 1;

	(void)number;
	for (;;) {
		pid_t child = fork();

		if (child < 0)
			break;
		if (child == 0) {
			pause();
			_exit(0);
		}
		made++;
	}
	printf("%ld %s\n", made, strerrorname_np(errno));
	return 0;
}

static long fill(const char *path)
{
	static char block[4096] = { 1 };
	long written = 0;
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t n;

	if (fd < 0)
		return 0;
	while ((n = write(fd, block, sizeof(block))) > 0)
		written += n;
	return written;
}

/* Fills every writable place and says how much fitted in all. */
static int disk_limit(long number)
{
	long written;

	(void)number;
	signal(SIGXFSZ, SIG_IGN);
	written = fill("/work/fill") + fill("/tmp/fill") + fill("/dev/shm/fill");
	printf("%ld %s\n", written, strerrorname_np(errno));
	return 0;
}

static int inode_limit(long number)
{
	static const char *const places[] = { "/work", "/tmp", "/dev/shm" };
	char path[64];
	long made = 0;

	(void)number;
	for (size_t i = 0; i < COUNT(places); i++) {
		for (long n = 0;; n++) {
			int fd;

			snprintf(path, sizeof(path), "%s/i%ld", places[i], n);
			fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
			if (fd < 0)
				break;
			close(fd);
			made++;
		}
	}
	printf("%ld %s\n", made, strerrorname_np(errno));
	return 0;
}

static int file_limit(long number)
{
	long written;

	(void)number;
	signal(SIGXFSZ, SIG_IGN);
	written = fill("/work/fill");
	printf("%ld %s\n", written, strerrorname_np(errno));
	return 0;
}

static int open_limit(long number)
{
	long highest = 2;
	int fd;

	(void)number;
	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		highest = fd;
	printf("%ld %s\n", highest + 1, strerrorname_np(errno));
	return 0;
}

/* `number` MiB to a file in /work, and on the disk before it ends. */
static int write_disk(long number)
{
	static char block[1 << 20];
	int fd = open("/work/written", O_WRONLY | O_CREAT | O_TRUNC, 0600);

	memset(block, 'x', sizeof(block));
	for (long i = 0; i < number; i++)
		if (write(fd, block, sizeof(block)) != (ssize_t)sizeof(block))
			return 1;
	return fsync(fd) ? 1 : 0;
}

static int sleeper(long number)
{
	sigset_t all;

	(void)number;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (;;)
		sleep(1000);
	return 0;
}

static int put(int fd, long number)
{
	static char block[65536];

	memset(block, fd == 1 ? 'o' : 'e', sizeof(block));
	while (number > 0) {
		size_t size = number < (long)sizeof(block) ? (size_t)number : sizeof(block);
		ssize_t n = write(fd, block, size);

		if (n < 0)
			return 1;
		number -= n;
	}
	return 0;
}

static int to_stdout(long number) { return put(1, number); }
static int to_stderr(long number) { return put(2, number); }

static int to_both(long number)
{
	pid_t child = fork();
	int status = 1;

	if (child == 0)
		return put(2, number);
	if (put(1, number))
		return 1;
	waitpid(child, &status, 0);
	return status ? 1 : 0;
}

static int nothing(long number) { return (int)number; }
static int raise_signal(long number) { signal((int)number, SIG_DFL); return raise((int)number) ? 1 : 0; }

static const struct { const char *name; int (*run)(long); } loads[] = {
	{ "burn", burn }, { "burn_system", burn_system }, { "burn_many", burn_many }, { "burn_short", burn_short },
	{ "touch", touch }, { "touch_child", touch_child }, { "processes", processes }, { "fork_limit", fork_limit },
	{ "disk_limit", disk_limit }, { "inode_limit", inode_limit }, { "file_limit", file_limit },
	{ "open_limit", open_limit }, { "write_disk", write_disk }, { "sleeper", sleeper }, { "stdout", to_stdout },
	{ "stderr", to_stderr }, { "both", to_both }, { "exit", nothing }, { "signal", raise_signal },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < COUNT(loads); i++)
		if (!strcmp(argv[1], loads[i].name))
			return loads[i].run(argc > 2 ? strtol(argv[2], NULL, 10) : 0);
	fprintf(stderr, "no load of that name\n");
	return 2;
}
