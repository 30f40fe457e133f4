// SPDX-License-Identifier: GPL-2.0
/*
 * Tells of each TCP socket that begins to listen on a port that somebody waits for: the raw tracepoint
 * inet_sock_set_state (include/trace/events/sock.h), whose arguments are the socket, its old and its new state.
 *
 * inet_csk_listen_start() sets the state a moment before it puts the socket into its tables, so whoever is told may
 * look too early, and must look again.
 */
#include "listen/listen_events.h"

int tcp_listen_events(u64 *ctx)
{
	void *sk = (void *)ctx[0], *net = NULL;
	u32 inum = 0;
	u16 port = 0;

	if ((int)ctx[2] != BPF_TCP_LISTEN)
		return 0;
	READ(port, sk, OFF_PORT);
	READ(net, sk, OFF_NET);
	READ(inum, net, OFF_INUM);
	if (is_wanted(inum, port))
		tell(bpf_get_current_pid_tgid() >> 32, port);
	return 0;
}
