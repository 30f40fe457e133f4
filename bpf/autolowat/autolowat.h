/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What both engines of AutoLOWAT share: settings, counters, ports, and what a program reads of a socket.
 * docs/autolowat.md has the argument why no reader stalls. The offsets (OFF_…) come from the running kernel's BTF.
 */
#pragma once
#include "abi.h"
#include "fields.h"
#include "autolowat/framing.h"

/*
 * By the helper's number: where /proc/kallsyms hides addresses (without CAP_SYSLOG), BCC makes bpf_probe_read_kernel() the
 * older bpf_probe_read(), which SOCK_OPS programs may not call.
 */
#undef READ
#define READ(to, from, offset) \
	((long (*)(void *, u32, const void *))BPF_FUNC_probe_read_kernel)(&(to), sizeof(to), (void *)(from) + (offset))

#define sockets_map MAP(SOCKETS_FD)   /* what an engine keeps of each socket */
#define settings_map MAP(SETTINGS_FD) /* by enum setting */
#define counters_map MAP(COUNTERS_FD) /* by enum counter */
#define ports_map MAP(PORTS_FD)	      /* a bit for each port, 64 in a word */

enum setting {
	WORKING,
	NETNS,	   /* the inode of the namespace whose sockets are followed */
	ARM_PORTS, /* connections of our ports are followed; else applications opt in, and every port is ours */
};

enum counter { OPTED_IN, FRAMES, SAVED, MARKS, FAIL_OPENS };

#define SOL_SOCKET 1
#define SO_RCVLOWAT 18
#define SOL_TCP 6
#define TCP_ULP 31
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#define OPT_LEVEL ((int)0xdeadbeef)
#define OPT_NAME ((int)0x8badf00d)
#define EUCLEAN 117

static __always_inline void count(u32 counter, u64 amount)
{
	u64 *value = bpf_map_lookup_elem(counters_map, &counter);

	if (value)
		*value += amount;
}

static __always_inline u32 setting(u32 key)
{
	u32 *value = bpf_map_lookup_elem(settings_map, &key);

	return value ? *value : 0;
}

static __always_inline bool is_our_port(u32 port)
{
	u32 word = port / 64;
	u64 *ports = bpf_map_lookup_elem(ports_map, &word);

	return ports && *ports >> port % 64 & 1;
}

/*
 * The kernel's struct sock of a context, at the offset that the context has it. The pointer in the context as programs
 * see it gives no access to the struct's other fields.
 */
static __always_inline void *raw_sock(void *context, u32 offset)
{
	void *sk = NULL;

	READ(sk, context, offset);
	return sk;
}

/* Where the socket's reader is; exact only while the socket is locked. */
static __always_inline u32 copied_seq(void *sk)
{
	u32 copied = 0;

	READ(copied, sk, OFF_COPIED_SEQ);
	return copied;
}

/* Somebody else has plans with the receive queue: kTLS, an MPTCP subflow, the application's own low-water mark. */
static __always_inline bool is_taken(void *sk)
{
	void *ulp = NULL;
	u32 lowat = 0;

	READ(ulp, sk, OFF_ULP);
	READ(lowat, sk, OFF_RCVLOWAT);
	return ulp || lowat > 1;
}

/* Switch callbacks of a socket on and off where there is no SOCK_OPS context (Linux 6.12). */
static __always_inline int set_flags(void *sk, void *raw, u32 set, u32 clear)
{
	u32 flags;
	u8 now = 0;

	READ(now, raw, OFF_CB_FLAGS);
	flags = (now | set) & ~clear;
	return flags == now ? 0 : bpf_setsockopt(sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}
