// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The guard's verdict about a descriptor of the caller, for hosts that take no program at an LSM hook.
 */
#include <linux/bpf.h>

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "guard.h"

struct question {
	__u32 fd;
	__u32 rules;
	__u32 uses;
	__u32 verdict;
	__u32 rule;
	__u32 pad;
};

SEC("syscall")
int judge(struct question *question)
{
	struct file *file = file_of(bpf_get_current_task_btf(), (int)question->fd);
	__u64 verdict = verdict_of((unsigned long)BPF_CORE_READ(file, f_path.mnt),
				   (unsigned long)BPF_CORE_READ(file, f_path.dentry),
				   question->rules, question->uses);

	question->verdict = (__u32)verdict;
	question->rule = (__u32)(verdict >> 32);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
