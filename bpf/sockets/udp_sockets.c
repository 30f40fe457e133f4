// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over UDP sockets that writes one record for each that has a port. A socket that nobody has
 * asked for its cookie before gets one here.
 */
#include "sockets/sockets.h"

/* As udp_diag_get_info() of net/ipv4/udp_diag.c has them. */
static __always_inline void read_queues(struct socket_record *record, void *sk)
{
	u32 received = 0, deficit = 0, sending = 0;

	READ(received, sk, OFF_RMEM_ALLOC);
	READ(deficit, sk, OFF_FORWARD_DEFICIT);
	READ(sending, sk, OFF_WMEM_ALLOC);
	record->receive_queue = received - deficit;
	record->send_queue = sending ? sending - 1 : 0;
}

int bpf_iter__udp(struct bpf_iter_udp_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	void *sk = ctx->udp_sk;
	struct socket_record record = {};

	if (!sk)
		return 0;
	record.cookie = socket_cookie(sk);
	record.uid = ctx->uid;
	record.idle = NO_IDLE;
	read_tuple(&record.tuple, sk);
	record.inode = read_inode(sk);
	read_queues(&record, sk);
	bpf_seq_write(meta->seq, &record, sizeof(record));
	return 0;
}
