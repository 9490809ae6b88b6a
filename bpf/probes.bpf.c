// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* All probes of the daemon: attached once for all runs; a task outside of them costs one look-up.
 */
#include <linux/bpf.h>

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "network.h"
#include "process.h"
#include "signals.h"
#include "syscalls.h"

/* How deep the caller's own group lies; for the daemon to find group_level. */
SEC("syscall")
int own_level(void *ctx)
{
	return bpf_get_current_task_btf()->cgroups->dfl_cgrp->level;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Named so that the object's type information has them: the daemon's side is compared with it. */
const struct exec_record *exec_record_type __attribute__((unused));
const struct long_exec_record *long_exec_record_type __attribute__((unused));
const struct fork_record *fork_record_type __attribute__((unused));
const struct exit_record *exit_record_type __attribute__((unused));
const struct event_record *event_record_type __attribute__((unused));
const struct placed_file_record *placed_file_record_type __attribute__((unused));
const struct long_file_record *long_file_record_type __attribute__((unused));
const struct two_file_record *two_file_record_type __attribute__((unused));
const struct flight_call *flight_call_type __attribute__((unused));
const struct network_record *network_record_type __attribute__((unused));
const struct socket_record *socket_record_type __attribute__((unused));
const struct signal_record *signal_record_type __attribute__((unused));
const struct syscall_record *syscall_record_type __attribute__((unused));
