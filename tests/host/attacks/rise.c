/* Installed set-user-ID and set-group-ID root by the test: says whether running it has raised anything. */
#include "attack.h"

#include <unistd.h>

int main(void)
{
	char line[256];
	unsigned long long effective = 0;
	FILE *status = fopen("/proc/self/status", "r");

	while (status && fgets(line, sizeof(line), status))
		sscanf(line, "CapEff: %llx", &effective);
	errno = EPERM;
	if (geteuid() != getuid() || getegid() != getgid() || effective)
		return report("rise", geteuid());
	return report("rise", -1);
}
