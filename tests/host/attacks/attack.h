/* What every hostile program shares: one line per attempt, "NAME blocked ERRNO" or "NAME EFFECT detail". */
#ifndef ATTACK_H
#define ATTACK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* rc < 0 means that the kernel refused, errno says how; anything else means that it happened. */
static inline int report(const char *name, long rc)
{
	if (rc < 0)
		printf("%s blocked %s\n", name, strerrorname_np(errno));
	else
		printf("%s EFFECT %ld\n", name, rc);
	fflush(stdout);
	return rc < 0 ? 0 : 1;
}

struct attempt {
	const char *name;
	long (*run)(void);
};

/* Runs the attempt that argv[1] names; 2 when there is none of that name. */
static inline int run_attempt(const struct attempt *table, size_t count, int argc, char **argv)
{
	for (size_t i = 0; i < count; i++) {
		if (argc > 1 && !strcmp(argv[1], table[i].name)) {
			errno = 0;
			return report(table[i].name, table[i].run());
		}
	}
	fprintf(stderr, "no attempt of that name\n");
	return 2;
}

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

#endif
