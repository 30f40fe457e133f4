// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over UDP sockets that writes one record for each that is bound: where it is bound, its reuseport group,
 * its queues and its drops.
 */
#include "sockets/sockets.h"
#include "sockets/membership.h"
#include "sockets/udp_queues.h"

/* sk_drops_read() of include/net/sock.h: since Linux 6.18 UDP counts in two places, one for each half of the NUMA nodes. */
static __always_inline u32 read_drops(void *sk)
{
	u32 drops = 0;
#ifdef OFF_DROP_COUNTERS
	void *counters = NULL;
	u32 other = 0;

	READ(counters, sk, OFF_DROP_COUNTERS);
	if (counters) {
		READ(drops, counters, OFF_DROPS0);
		READ(other, counters, OFF_DROPS1);
		return drops + other;
	}
#endif
	READ(drops, sk, OFF_DROPS);
	return drops;
}

int bpf_iter__udp(struct bpf_iter_udp_context *ctx)
{
	void *sk = ctx->udp_sk;
	struct udp_record record = {};

	if (!sk)
		return 0;
	record.cookie = socket_cookie(sk);
	read_tuple(&record.tuple, sk);
	read_membership(&record.membership, sk);
	read_queues(&record.receive_queue, &record.send_queue, sk);
	record.drops = read_drops(sk);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
