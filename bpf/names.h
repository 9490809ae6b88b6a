/* SPDX-License-Identifier: Apache-2.0 */
/* What the names in a path mean to a run's rules: by hash, so that paths are handed on only where
 * one is looked for. */
#ifndef SUPERVISOR_NAMES_H
#define SUPERVISOR_NAMES_H

#include "paths.h"

/* What a path's names mean to the run's rules, from its last name up to its first below the root.
 */
struct meaning {
	struct name_key key;
	__u32 found; /* enum name_use of all of them, and the class of the first below the root */
};

struct look {
	struct dentry *dentry;
	struct mount *mount;
	struct meaning meaning;
	__u32 room; /* what resolve_path() takes for it, in bytes */
};

static __always_inline void look_at(struct meaning *meaning)
{
	__u32 *value = bpf_map_lookup_elem(&names, &meaning->key);
	__u32 use = meaning->found & ((1 << NAME_CLASS_SHIFT) - 1);

	meaning->found = use | (value ? *value : 0);
}

static long look_step(__u32 index, void *context)
{
	struct look *look = context;
	struct dentry *dentry = look->dentry;
	struct mount *mount = look->mount;
	struct dentry *parent;
	__u32 length;

	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		look->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		look->mount = above;
		return above == mount;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry)
		return 1;
	__builtin_memset(look->meaning.key.name, 0, NAME_KEY_SIZE);
	if (bpf_probe_read_kernel_str(look->meaning.key.name, NAME_KEY_SIZE,
				      BPF_CORE_READ(dentry, d_name.name)) <= 0)
		return 1;
	look_at(&look->meaning);
	/* A name that does not fit into NAME_SIZE is as much as a path that is too long. */
	length = BPF_CORE_READ(dentry, d_name.len) + 1;
	look->room += length > NAME_SIZE ? PATH_SIZE : length;
	look->dentry = parent;
	return 0;
}

/* Room for one path in the caller's memory: whoever is called here is not interrupted by another.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct long_path);
} scratch SEC(".maps");

/* The same of a path in the caller's memory, name by name. */
struct scan {
	struct meaning meaning;
	__u32 start; /* of the name that is being read */
	char *path;
};

static long scan_step(__u32 index, void *context)
{
	struct scan *scan = context;
	char c = scan->path[index & (LONG_PATH_SIZE - 1)];
	__u64 length;

	if (c && c != '/')
		return 0;
	length = (__u32)(index - scan->start);
	/* Lest the compiler compares one copy and hands on another, which the verifier then does
	 * not know the bounds of. */
	asm volatile("" : "+r"(length));
	if (length > NAME_KEY_SIZE - 1)
		length = NAME_KEY_SIZE - 1;
	__builtin_memset(scan->meaning.key.name, 0, NAME_KEY_SIZE);
	if (length && !bpf_probe_read_kernel(scan->meaning.key.name, length,
					     scan->path + (scan->start & (LONG_PATH_SIZE - 1))))
		look_at(&scan->meaning);
	scan->start = index + 1;
	return !c;
}

/*
 * The two ways to look names up, as global functions: the verifier looks at each once, and each has
 * a stack of its own.
 */
__noinline __u32 names_of_words(unsigned long pointer, __u32 rules)
{
	struct scan scan = {.meaning.key.rules = rules, .start = nothing};
	__u32 zero = 0, found;
	struct long_path *path = bpf_map_lookup_elem(&scratch, &zero);
	long length;

	if (!path)
		return 0;
	scan.path = path->text;
	length = bpf_probe_read_user_str(path->text, LONG_PATH_SIZE, (void *)pointer);
	if (length > 0)
		bpf_loop((__u32)length, scan_step, &scan, 0);
	found = scan.meaning.found & ((1 << NAME_CLASS_SHIFT) - 1);
	return length > PATH_SIZE ? found | NAME_LONG : found;
}

__noinline __u32 names_of_path(unsigned long mount, unsigned long dentry, __u32 rules)
{
	struct look look = {
		.dentry = (struct dentry *)dentry,
		.mount = (struct mount *)(mount - bpf_core_field_offset(struct mount, mnt)),
		.meaning.key.rules = rules,
		.room = nothing,
	};
	long steps = bpf_loop(LONG_DEPTH, look_step, &look, 0);

	return look.meaning.found |
	       (look.room > PATH_SIZE - NAME_SIZE || steps > MAX_DEPTH ? NAME_LONG : 0);
}

#endif
