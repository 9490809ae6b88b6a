/* What one run could leave for the next: residue leave TOKEN, then in another run residue look TOKEN. `look` prints one
 * line per kind, "KIND blocked ERRNO" where nothing was found, "KIND EFFECT n" where something was. */
#include "attack.h"

#include <dirent.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define KEY 0x53555056
#define PORT 47001

static socklen_t abstract(struct sockaddr_un *address, const char *token)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	strncpy(address->sun_path + 1, token, sizeof(address->sun_path) - 2);
	return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(token);
}

static void leave_file(const char *directory, const char *token)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, token);
	fd = open(path, O_WRONLY | O_CREAT, 0666);
	if (fd >= 0 && write(fd, token, strlen(token)) < 0)
		perror(path);
	close(fd);
}

static int leave(const char *token, int hold)
{
	static const char *const places[] = { "/tmp", "/dev/shm", "/work", "/var/tmp", "/run", "/dev/mqueue" };
	struct rlimit low = { 17, 17 };
	struct sockaddr_un address;
	struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	char name[64];
	int fd;

	for (size_t i = 0; i < COUNT(places); i++)
		leave_file(places[i], token);
	fd = shmget(KEY, 4096, IPC_CREAT | 0666);
	if (fd >= 0)
		strcpy(shmat(fd, NULL, 0), "left");
	semget(KEY, 1, IPC_CREAT | 0666);
	msgget(KEY, IPC_CREAT | 0666);
	snprintf(name, sizeof(name), "/%s", token);
	mq_open(name, O_RDWR | O_CREAT, 0666, NULL);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(fd, (struct sockaddr *)&address, abstract(&address, token)) || listen(fd, 1))
		perror("abstract");
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(fd, (struct sockaddr *)&port, sizeof(port)) || listen(fd, 1))
		perror("port");
	umask(0);
	setrlimit(RLIMIT_NOFILE, &low);
	nice(10);
	setenv("SUPERVISOR_RESIDUE", token, 1);
	printf("left\n");
	fflush(stdout);
	while (hold)
		pause();
	/* Last, since this call may be the end of the run. */
	syscall(SYS_add_key, "user", token, "left", 4UL, -4 /* USER_KEYRING */);
	return 0;
}

static void look_file(const char *directory, const char *token)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", directory, token);
	report(path[1] == 't' ? "tmp" : directory, access(path, F_OK) ? -1 : 0);
}

static int look(const char *token)
{
	static const char *const places[] = { "/tmp", "/dev/shm", "/work", "/var/tmp", "/run", "/dev/mqueue" };
	struct sockaddr_un address;
	struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	struct rlimit limit;
	char name[64];
	mode_t mask;
	int fd;

	for (size_t i = 0; i < COUNT(places); i++)
		look_file(places[i], token);
	report("sysv_shm", shmget(KEY, 0, 0));
	report("sysv_sem", semget(KEY, 0, 0));
	report("sysv_msg", msgget(KEY, 0));
	snprintf(name, sizeof(name), "/%s", token);
	report("posix_queue", mq_open(name, O_RDONLY));
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	report("abstract_socket", connect(fd, (struct sockaddr *)&address, abstract(&address, token)));
	port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	report("loopback_port", connect(fd, (struct sockaddr *)&port, sizeof(port)));
	errno = EPERM;
	getrlimit(RLIMIT_NOFILE, &limit);
	report("limits", limit.rlim_cur == 17 ? 17 : -1);
	mask = umask(022);
	report("umask", mask == 022 ? -1 : (long)mask);
	errno = 0;
	report("environment", getenv("SUPERVISOR_RESIDUE") ? 1 : -1);
	errno = EPERM;
	report("nice", nice(0) ? 1 : -1);
	printf("looked\n");
	fflush(stdout);
	report("keyring", syscall(SYS_request_key, "user", token, NULL, 0));
	return 0;
}

/* Holds an exclusive lock, a record lock and a read lease on a file of a shared mount until it is ended. */
static int lock(const char *path)
{
	struct flock record = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return report("lock", -1), 1;
	if (flock(fd, LOCK_EX | LOCK_NB))
		perror("flock");
	if (fcntl(fd, F_SETLK, &record))
		perror("record");
	if (fcntl(fd, F_SETLEASE, F_RDLCK))
		perror("lease");
	printf("locked\n");
	fflush(stdout);
	for (;;)
		pause();
}

/* Swaps PATH/target between a directory and a link to DESTINATION, as fast as it goes. */
static int swap(const char *path, const char *destination)
{
	char target[512], other[512];

	snprintf(target, sizeof(target), "%s/target", path);
	snprintf(other, sizeof(other), "%s/other", path);
	unlink(other);
	if (symlink(destination, other))
		return report("swap", -1), 1;
	printf("swapping\n");
	fflush(stdout);
	for (;;)
		syscall(SYS_renameat2, AT_FDCWD, target, AT_FDCWD, other, 2 /* RENAME_EXCHANGE */);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "leave"))
		return leave(argv[2], 0);
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return leave(argv[2], 1);
	if (argc == 3 && !strcmp(argv[1], "look"))
		return look(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "lock"))
		return lock(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "swap"))
		return swap(argv[2], argv[3]);
	return 2;
}
