// SPDX-License-Identifier: GPL-2.0
/*
 * Tells of each TCP socket that begins to listen on a port that somebody waits for, and all that the kernel compares
 * before the socket joins a group: the raw tracepoint inet_sock_set_state (include/trace/events/sock.h), whose
 * arguments are the socket, its old and its new state.
 *
 * inet_csk_listen_start() sets the state a moment before it puts the socket into its tables, so whoever is told may
 * look too early, and must look again.
 */
#include "listen/listen_events.h"
#include "process.h"

static __always_inline void read_socket(struct listen_event *event, void *sk)
{
	void *socket = NULL;
	u8 bits = 0;

	READ(event->family, sk, OFF_FAMILY);
	if (event->family == FAMILY_INET6)
		READ(event->address, sk, OFF_LOCAL6);
	else
		bpf_probe_read_kernel(event->address, 4, sk + OFF_LOCAL);
	READ(event->device, sk, OFF_DEVICE);
	READ(event->uid, sk, OFF_UID);
	READ(bits, sk, OFF_V6ONLY);
	event->v6only = !!(bits & MASK_V6ONLY);
	READ(bits, sk, OFF_REUSEPORT);
	event->reuseport = !!(bits & MASK_REUSEPORT);
	READ(socket, sk, OFF_SOCKET);
	READ(event->inode, socket, OFF_INODE);
}

int tcp_listen_events(u64 *ctx)
{
	void *sk = (void *)ctx[0], *net = NULL;
	struct listen_event event = {};
	u32 inum = 0, *wanted;

	if ((int)ctx[2] != BPF_TCP_LISTEN)
		return 0;
	READ(event.port, sk, OFF_PORT);
	READ(net, sk, OFF_NET);
	READ(inum, net, OFF_INUM);
	wanted = is_wanted(inum, event.port);
	if (!wanted)
		return 0;
	read_socket(&event, sk);
	event.pid = process_id(*wanted);
	tell(&event);
	return 0;
}
