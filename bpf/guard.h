/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files a run is kept away from, decided before anything happens: where they lie, whatever
 * name led there, is compared with what its rules deny.
 */
#ifndef SUPERVISOR_GUARD_H
#define SUPERVISOR_GUARD_H

#include "paths.h"

#define EPERM 1

/* What is done to a file. supervisor/rules/denied.py names the kinds of rules for them. */
enum guarded_use {
	USE_READ = 1 << 0, /* opened for it */
	USE_WRITE = 1 << 1,
	USE_EXEC = 1 << 2,
	USE_UNLINK = 1 << 3,
	USE_RENAME = 1 << 4, /* from or to */
	USE_CHMOD = 1 << 5,
	USE_LINK = 1 << 6,
	USE_MKDIR = 1 << 7,
};
#define USES 8
#define PINNED                                                                                   \
	(1 << USES) /* of struct run_entry alone: what it mounts must not give files other paths \
		     */

#define KILL_SHIFT 8	     /* of a use: denied, and the end of the run */
#define HOLDS	   (1 << 16) /* something below is denied, which must not get another path */
#define UNRESOLVED (1 << 17) /* where it lies could not be found out */

enum denied_kind {
	DENIED_PATH = 0,
	DENIED_NAME = 1, /* wherever it lies */
};

struct denied_key {
	__u32 rules; /* as in struct run_entry */
	__u32 kind;
	__u64 hash;
};

struct denied_value {
	__u32 exact;	 /* uses of the file itself, those that kill above KILL_SHIFT, and HOLDS */
	__u32 below;	 /* of all below it */
	__u8 rule[USES]; /* by use: the number of a rule that denies it, from 1 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct denied_key);
	__type(value, struct denied_value);
} denied SEC(".maps");

/* What was denied. */
struct denial_record {
	struct record_header head;
	__u32 nr;
	__u32 verdict; /* what was tried and denied, as in struct denied_value, or UNRESOLVED */
	__u32 rule;    /* its number; 0 where it is unresolved or something below is meant */
	__u32 path_size;
	char path[PATH_SIZE]; /* names, the last first */
};

/*
 * Hashes. A path's is a sum, so that from the whole's, found on a first way up, those of all
 * directories above can be had on a second one without the names being kept: of names n1/n2/.../nk
 * it is h(n1) + h(n2) * B + ... + h(nk) * B^(k-1). 64 bits, with a seed of the daemon's own, are
 * enough: two that collide cost whoever owns the second a denial, and never deny too little.
 */
volatile __u64 hash_seed = 1;

#define HASH_FACTOR 0x9fb21c651e98df25ull
#define HASH_BASE   0x9e3779b97f4a7c15ull
#define HASH_BACK   0xf1de83e19937733dull /* HASH_BASE * HASH_BACK == 1 */
#define NAME_BYTES  256			  /* NAME_MAX and a NUL */
#define MAX_STEPS   256			  /* names and mounts from a file up to the root */
#define ATTEMPTS    3

__noinline __u64 hash_of_name(unsigned long name, __u32 length)
{
	__u64 hash = hash_seed ^ length;

	for (__u32 at = 0; at < NAME_BYTES && at < length; at += 8) {
		__u64 left = length - at, word = 0;

		/* Lest the compiler compares one copy and hands on another (names.h). */
		asm volatile("" : "+r"(left));
		if (left > 8)
			left = 8;
		bpf_probe_read_kernel(&word, left, (void *)(name + at));
		hash = (hash ^ word) * HASH_FACTOR;
		hash ^= hash >> 32;
	}
	return hash;
}

enum way_up {
	UP_MOUNT, /* nothing to be named */
	UP_NAME,
	UP_TOP,
	UP_NOWHERE, /* a pipe or the like: it has no path */
	UP_OUTSIDE, /* of its mount: somebody has moved it out */
};

struct walk {
	struct dentry *dentry;
	struct mount *mount;
	__u64 hash; /* of the path so far on the first way; of the path from here up on the second
		     */
	__u64 power;
	__u32 rules;
	__u32 uses;
	__u32 verdict;
	__u32 rule;
	__u32 names;
	__u32 end; /* enum way_up */
};

/* One step. `named`: whose name it went by. */
static __always_inline enum way_up go_up(struct walk *walk, struct dentry **named)
{
	struct dentry *dentry = walk->dentry, *parent;
	struct mount *mount = walk->mount;

	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = above;
		return above == mount ? UP_TOP : UP_MOUNT;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry)
		return dentry == BPF_CORE_READ(dentry, d_sb, s_root) ? UP_OUTSIDE : UP_NOWHERE;
	*named = dentry;
	walk->dentry = parent;
	return UP_NAME;
}

static __always_inline __u64 name_hash(struct dentry *dentry)
{
	return hash_of_name((unsigned long)BPF_CORE_READ(dentry, d_name.name),
			    BPF_CORE_READ(dentry, d_name.len));
}

static long sum_step(__u32 index, void *context)
{
	struct walk *walk = context;
	struct dentry *named = 0;
	enum way_up way = go_up(walk, &named);

	walk->end = way;
	if (way == UP_NAME) {
		walk->hash = walk->hash * HASH_BASE + name_hash(named);
		walk->power = walk->names ? walk->power * HASH_BASE : 1;
		walk->names++;
	}
	return way > UP_NAME;
}

static __always_inline void weigh(struct walk *walk, enum denied_kind kind, __u64 hash)
{
	struct denied_key key = {.rules = walk->rules, .kind = kind, .hash = hash};
	struct denied_value *value = bpf_map_lookup_elem(&denied, &key);
	__u32 found, hit;

	if (!value)
		return;
	found = walk->names ? value->below : value->exact;
	found &= walk->uses | (walk->uses & ((1 << USES) - 1)) << KILL_SHIFT;
	hit = found & ((1 << USES) - 1);
	/* Of several rules one is named: one that kills, if there is one. */
	if (hit && (!walk->rule || (found & ~walk->verdict) >> KILL_SHIFT)) {
#pragma unroll
		for (int use = 0; use < USES; use++)
			if (hit & 1 << use)
				walk->rule = value->rule[use];
	}
	walk->verdict |= found;
}

static long weigh_step(__u32 index, void *context)
{
	struct walk *walk = context;
	struct dentry *named = 0;
	enum way_up way = go_up(walk, &named);

	walk->end = way;
	if (way == UP_NAME) {
		__u64 hash = name_hash(named);

		weigh(walk, DENIED_PATH, walk->hash);
		weigh(walk, DENIED_NAME, hash);
		walk->hash -= hash * walk->power;
		walk->power *= HASH_BACK;
		walk->names++;
	}
	return way > UP_NAME;
}

static __always_inline void start(struct walk *walk, unsigned long mount, unsigned long dentry)
{
	walk->dentry = (struct dentry *)dentry;
	walk->mount = (struct mount *)(mount - bpf_core_field_offset(struct mount, mnt));
	walk->names = nothing;
	walk->end = nothing;
}

/*
 * What of `uses` is denied of the file there: bits of a struct denied_value's, and the number of a
 * rule above them. Who moves directories about all the while is denied.
 */
__noinline __u64 verdict_of(unsigned long mount, unsigned long dentry, __u32 rules, __u32 uses)
{
	struct walk walk = {
		.rules = rules,
		.verdict = nothing,
		.rule = nothing,
		.uses = uses, /* HOLDS among them where the file gets another path */
	};

	/* What another task moves meanwhile is looked at anew, but not for ever. */
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		walk.hash = nothing;
		walk.power = nothing;
		start(&walk, mount, dentry);
		bpf_loop(MAX_STEPS, sum_step, &walk, 0);
		start(&walk, mount, dentry);
		bpf_loop(MAX_STEPS, weigh_step, &walk, 0);
		if (!walk.hash)
			break;
	}
	if (walk.end < UP_TOP || walk.end == UP_OUTSIDE || walk.hash)
		walk.verdict |= UNRESOLVED;
	return (__u64)walk.rule << 32 | walk.verdict;
}

#endif
