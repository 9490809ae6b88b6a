/* Programs that take as much as they can of one thing: exhaust NAME. They hold it until something ends them, or, where
 * the kernel says no first, print "NAME refused ERRNO COUNT", hold what they have for a moment and exit with 0. */
#include "attack.h"

#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 20];

static int refused(const char *name, long count)
{
	printf("%s refused %s %ld\n", name, strerrorname_np(errno), count);
	fflush(stdout);
	usleep(300000);
	return 0;
}

static int fork_bomb(void)
{
	for (;;)
		if (fork() < 0)
			usleep(1000);
	return 0;
}

static void *wait_for_ever(void *nothing)
{
	for (;;)
		sleep(1000);
	return nothing;
}

static int thread_bomb(void)
{
	pthread_attr_t small;
	pthread_t thread;
	long made = 0;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 16384);
	while ((errno = pthread_create(&thread, &small, wait_for_ever, NULL)) == 0)
		made++;
	return refused("thread_bomb", made);
}

static int anonymous(void)
{
	for (;;) {
		char *page = mmap(NULL, sizeof(block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page == MAP_FAILED)
			return refused("anonymous", 0);
		memset(page, 1, sizeof(block));
	}
}

static int fill_descriptor(const char *name, int fd)
{
	long written = 0;
	ssize_t n;

	if (fd < 0)
		return refused(name, 0);
	signal(SIGXFSZ, SIG_IGN);
	while ((n = write(fd, block, sizeof(block))) > 0)
		written += n;
	return refused(name, written);
}

static int tmpfs(void) { return fill_descriptor("tmpfs", open("/tmp/big", O_WRONLY | O_CREAT, 0600)); }
static int shm(void) { return fill_descriptor("shm", open("/dev/shm/big", O_WRONLY | O_CREAT, 0600)); }

static int memfd(void)
{
	for (long made = 0;; made++) {
		int fd = memfd_create("big", 0);

		if (fd < 0)
			return refused("memfd", made);
		for (int i = 0; i < 16; i++)
			if (write(fd, block, sizeof(block)) < 0)
				return refused("memfd", made);
	}
}

static int pipes(void)
{
	for (long made = 0;; made++) {
		int ends[2];

		if (pipe2(ends, O_NONBLOCK) < 0)
			return refused("pipes", made);
		fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
		if (write(ends[1], block, sizeof(block)) < 0 && errno != EAGAIN)
			return refused("pipes", made);
	}
}

static int sockets(void)
{
	for (long made = 0;; made++) {
		int ends[2], size = 1 << 24;

		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) < 0)
			return refused("sockets", made);
		setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		while (write(ends[0], block, sizeof(block)) > 0)
			;
	}
}

/* A file page mapped at addresses far apart: little memory of its own, one page of page table for each. */
static int page_tables(void)
{
	int fd = open("/tmp/page", O_RDWR | O_CREAT, 0600);

	if (fd < 0 || ftruncate(fd, 4096) < 0)
		return refused("page_tables", 0);
	for (long made = 0;; made++) {
		char *at = (char *)((1UL << 40) + (unsigned long)made * (2UL << 20));
		char *page = mmap(at, 4096, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);

		if (page == MAP_FAILED)
			return refused("page_tables", made);
		*(volatile char *)page;
	}
}

static int keys(void)
{
	char name[32];

	for (long made = 0;; made++) {
		snprintf(name, sizeof(name), "supervisor-%ld", made);
		if (syscall(SYS_add_key, "user", name, block, 1024UL, -3 /* SESSION_KEYRING */) < 0)
			return refused("keys", made);
	}
}

static int inodes(void)
{
	char path[64];

	for (long made = 0;; made++) {
		int fd;

		snprintf(path, sizeof(path), "/tmp/i%ld", made);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0)
			return refused("inodes", made);
		close(fd);
	}
}

static int deep_directories(void)
{
	for (long made = 0;; made++)
		if (mkdir("d", 0700) < 0 || chdir("d") < 0)
			return refused("deep_directories", made);
}

static int descriptors(void)
{
	for (long made = 0;; made++)
		if (dup(0) < 0)
			return refused("descriptors", made);
}

static int output(void)
{
	pid_t child = fork();
	int fd = child == 0 ? 2 : 1;

	for (;;)
		if (write(fd, block, sizeof(block)) < 0)
			return refused("output", 0);
}

static int cpu(void)
{
	for (int i = 0; i < 15; i++)
		if (fork() == 0)
			break;
	for (;;)
		;
	return 0;
}

static int inotify(void)
{
	char path[64];
	int watcher = -1;

	for (long made = 0;; made++) {
		if (made % 200 == 0 && (watcher = inotify_init1(0)) < 0)
			return refused("inotify", made);
		snprintf(path, sizeof(path), "/tmp/w%ld", made);
		if (mkdir(path, 0700) < 0 || inotify_add_watch(watcher, path, IN_ALL_EVENTS) < 0)
			return refused("inotify", made);
	}
}

static int posix_queues(void)
{
	char name[32];

	for (long made = 0;; made++) {
		mqd_t queue;

		snprintf(name, sizeof(name), "/q%ld", made);
		queue = mq_open(name, O_RDWR | O_CREAT | O_NONBLOCK, 0600, NULL);
		if (queue < 0)
			return refused("posix_queues", made);
		while (mq_send(queue, block, 8192, 0) == 0)
			;
		close(queue);
	}
}

static int sysv_shm(void)
{
	for (long made = 0;; made++) {
		int id = shmget(IPC_PRIVATE, 16 << 20, IPC_CREAT | 0600);
		void *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);

		if (at == (void *)-1)
			return refused("sysv_shm", made);
		memset(at, 1, 16 << 20);
		shmdt(at);
	}
}

static int sysv_sem(void)
{
	for (long made = 0;; made++)
		if (semget(IPC_PRIVATE, 1000, IPC_CREAT | 0600) < 0)
			return refused("sysv_sem", made);
}

static int sysv_msg(void)
{
	struct { long type; char text[8000]; } message = { .type = 1 };

	for (long made = 0;; made++) {
		int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);

		if (id < 0)
			return refused("sysv_msg", made);
		while (msgsnd(id, &message, sizeof(message.text), IPC_NOWAIT) == 0)
			;
	}
}

static int zombies(void)
{
	for (long made = 0;; made++) {
		pid_t child = fork();

		if (child < 0)
			return refused("zombies", made);
		if (child == 0)
			_exit(0);
	}
}

/* Orphans by the thousand: the sandbox's init has to reap them all. */
static int orphans(void)
{
	for (long made = 0; made < 3000; made++) {
		pid_t child = fork();

		if (child < 0)
			return refused("orphans", made);
		if (child == 0) {
			if (fork() == 0)
				_exit(0);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	return refused("orphans", 3000);
}

/* Events of every kind as fast as they go, for two seconds: opens, execs, forks, refused calls. */
static int events(void)
{
	struct timespec start, now;
	char *const argv[] = { "/no/such/program", NULL };
	long made = 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		for (int i = 0; i < 1000; i++, made++) {
			close(open("/no/such/file", O_RDONLY));
			execv(argv[0], argv);
			syscall(SYS_getppid);
			socket(AF_APPLETALK, SOCK_STREAM, 0);
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < 2);
	errno = 0;
	printf("events refused 0 %ld\n", made);
	return 0;
}

static int locked_memory(void)
{
	for (long made = 0;; made++) {
		char *page = mmap(NULL, sizeof(block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);

		if (page == MAP_FAILED)
			return refused("locked_memory", made);
	}
}

static int timers(void)
{
	struct sigevent quiet = { .sigev_notify = SIGEV_NONE };

	for (long made = 0;; made++) {
		timer_t timer;

		if (timer_create(CLOCK_MONOTONIC, &quiet, &timer) < 0 || made > 200000)
			return refused("timers", made);
	}
}

static const struct { const char *name; int (*run)(void); } ways[] = {
	{ "fork_bomb", fork_bomb }, { "thread_bomb", thread_bomb }, { "anonymous", anonymous }, { "tmpfs", tmpfs },
	{ "shm", shm }, { "memfd", memfd }, { "pipes", pipes }, { "sockets", sockets }, { "page_tables", page_tables },
	{ "keys", keys }, { "inodes", inodes }, { "deep_directories", deep_directories }, { "descriptors", descriptors },
	{ "output", output }, { "cpu", cpu }, { "inotify", inotify }, { "posix_queues", posix_queues },
	{ "sysv_shm", sysv_shm }, { "sysv_sem", sysv_sem }, { "sysv_msg", sysv_msg }, { "zombies", zombies },
	{ "orphans", orphans }, { "events", events }, { "locked_memory", locked_memory }, { "timers", timers },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < COUNT(ways); i++)
		if (!strcmp(argv[1], ways[i].name))
			return ways[i].run();
	fprintf(stderr, "no way of that name\n");
	return 2;
}
