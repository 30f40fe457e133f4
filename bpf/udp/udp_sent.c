// SPDX-License-Identifier: GPL-2.0
/*
 * Counts the packets that watched sockets send: the raw tracepoint net_dev_queue (include/trace/events/net.h), whose
 * argument is the packet. It runs before a device takes the packet from its socket (skb_orphan()).
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#include "abi.h"
#include "fields.h"

int udp_sent(u64 *ctx)
{
	void *sk = NULL;
	u64 cookie = 0;
	struct sent *sent;

	READ(sk, ctx[0], OFF_SK);
	if (!sk)
		return 0;
	READ(cookie, sk, OFF_COOKIE);
	sent = bpf_map_lookup_elem(MAP(SENT_FD), &cookie);
	if (!sent)
		return 0;
	__sync_fetch_and_add(&sent->packets, 1);
	sent->last_ns = bpf_ktime_get_ns();
	return 0;
}
