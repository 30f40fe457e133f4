/* SPDX-License-Identifier: GPL-2.0 */
/* What the engine solo keeps of each connection that it follows, by the addresses that a packet has. */
#pragma once
#include "autolowat/autolowat.h"

/* IPv4 addresses are mapped to IPv6, as they are in the sockets of a dual listener; ports are in network order. */
struct key {
	u32 remote[4];
	u32 local[4];
	u16 remote_port;
	u16 local_port;
};

/*
 * The lock keeps what comes after it. The tc program changes the stream as segments arrive, the SOCK_OPS program, with the
 * socket locked, the rest. Their sizes are in reuseport_tool/kernel/autolowat.py.
 */
struct flow {
	struct bpf_spin_lock lock;
	u32 turn; /* counts the changes of `stream` */
	struct stream stream;
	u32 doubt;    /* enum doubt: the next callback gives the connection up */
	u32 lowat;    /* what we set last */
	u32 answered; /* the goal for which SO_RCVLOWAT was set, or left at 1 */
	u32 copied;   /* where the reader was then */
	u32 refused;  /* how often it was left at 1, one after another: the reader sleeps in recv() */
	u32 skip;     /* goals not to ask for */
	u32 flags;    /* callbacks that we switched on; WRITE_FLAG: may be switched */
	u32 ecn;      /* marks must not be ECE */
	u32 unused;
	u64 sk; /* the kernel's struct sock, for looking at and to tell sockets apart */
};

_Static_assert(sizeof(struct key) == SIZEOF_KEY, "struct key");
_Static_assert(sizeof(struct flow) == SIZEOF_FLOW, "struct flow");

static __always_inline bool is_open(struct stream *stream)
{
	return stream->next != stream->start;
}

static __always_inline void map_address(u32 *address, u32 ipv4)
{
	address[0] = address[1] = 0;
	address[2] = bpf_htonl(0xffff);
	address[3] = ipv4;
}

/* The key of a struct sock, where there is no context that has the addresses. */
static __always_inline void read_key(void *sk, struct key *key)
{
	u16 family = 0, port = 0;
	u32 address = 0;

	READ(family, sk, OFF_FAMILY);
	READ(key->remote_port, sk, OFF_REMOTE_PORT);
	READ(port, sk, OFF_LOCAL_PORT);
	key->local_port = bpf_htons(port);
	if (family == FAMILY_INET6) {
		READ(key->remote, sk, OFF_REMOTE6);
		READ(key->local, sk, OFF_LOCAL6);
		return;
	}
	READ(address, sk, OFF_REMOTE4);
	map_address(key->remote, address);
	READ(address, sk, OFF_LOCAL4);
	map_address(key->local, address);
}

/* The flow of a socket; NULL if it is not followed. */
static __always_inline struct flow *flow_of(void *sk, struct key *key)
{
	struct flow *flow = bpf_map_lookup_elem(sockets_map, key);

	return flow && flow->sk == (u64)(long)sk ? flow : NULL;
}
