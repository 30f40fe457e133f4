/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the iterators over TCP and UDP sockets read the fields of one.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#pragma once

#include "sockets/iterator.h"

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

/* What every socket has: its cookie, addresses, ports and state. */
static __always_inline void read_common(struct socket_record *record, void *sk, u32 uid)
{
	record->cookie = socket_cookie(sk);
	record->uid = uid;
	record->idle = NO_IDLE;
	read_tuple(&record->tuple, sk);
}
