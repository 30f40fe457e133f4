/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the iterators over TCP and UDP sockets share: the record of a socket and how its fields are read.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#pragma once

#include "sockets/iterator.h"

enum {
	STATE_SYN_SENT = 2,
	STATE_TIME_WAIT = 6,
	STATE_CLOSE = 7,
	STATE_LISTEN = 10,
	STATE_NEW_SYN_RECV = 12,
	FAMILY_INET6 = 10,
};

#define NO_IDLE 0xffffffffU

/* Who a socket is and where it is bound; bpf/destroy.h compares it as it stands. */
struct tuple {
	u8 local[16];		/* network order; of an IPv4 address the first four bytes */
	u8 remote[16];
	u16 local_port;		/* host order */
	u16 remote_port;	/* network order */
	u16 family;
	u16 state;
	u32 device;		/* index of the device it is bound to, or 0 */
	u32 unused;
};

/* Read by RawSocket in reuseport_tool/kernel/socket_iterator.py. */
struct record {
	u64 cookie;
	u64 inode;		/* 0 for a socket without a descriptor */
	u64 synack_us;		/* when the first SYN+ACK of a request socket was sent, CLOCK_MONOTONIC; or 0 */
	struct tuple tuple;
	u32 uid;
	u32 idle;		/* jiffies since data came or went, or NO_IDLE */
	u32 receive_queue;	/* bytes; of a listener its accept queue, in connections */
	u32 send_queue;		/* bytes; of a listener its backlog, in connections */
};

#ifdef OFF_COOKIE
/* Before Linux 5.12 iterators cannot ask for cookies: 0 for a socket that nobody else has asked for its. */
static __always_inline u64 socket_cookie(void *sk)
{
	u64 cookie = 0;

	READ(cookie, sk, OFF_COOKIE);
	return cookie;
}
#else
/* BCC declares this helper with 32 bits. */
static u64 (*socket_cookie)(void *sk) = (void *)BPF_FUNC_get_socket_cookie;
#endif

static __always_inline void read_tuple(struct tuple *tuple, void *sk)
{
	tuple->family = LOAD(u16, sk, OFF_FAMILY);
	tuple->state = LOAD(u8, sk, OFF_STATE);
	tuple->local_port = LOAD(u16, sk, OFF_LOCAL_PORT);
	tuple->remote_port = LOAD(u16, sk, OFF_REMOTE_PORT);
	tuple->device = LOAD(u32, sk, OFF_DEVICE);
	if (tuple->family == FAMILY_INET6) {
		READ(tuple->local, sk, OFF_LOCAL6);
		READ(tuple->remote, sk, OFF_REMOTE6);
	} else {
		*(u32 *)tuple->local = LOAD(u32, sk, OFF_LOCAL4);
		*(u32 *)tuple->remote = LOAD(u32, sk, OFF_REMOTE4);
	}
}

/* sock_i_ino() of include/net/sock.h: the inode lies behind the struct socket. */
static __always_inline u64 read_inode(void *sk)
{
	void *socket = NULL;
	u64 inode = 0;

	READ(socket, sk, OFF_SOCKET);
	if (socket)
		READ(inode, socket, OFF_INODE);
	return inode;
}
