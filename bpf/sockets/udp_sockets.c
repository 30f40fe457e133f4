// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over UDP sockets that writes one record for each that has a port. A socket that nobody has
 * asked for its cookie before gets one here.
 */
#include "sockets/sockets.h"
#include "sockets/udp_queues.h"

int bpf_iter__udp(struct bpf_iter_udp_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	void *sk = ctx->udp_sk;
	struct socket_record record = {};
	struct udp_queues queues;

	if (!sk)
		return 0;
	read_common(&record, sk, ctx->uid);
	record.inode = read_inode(sk);
	queues = read_queues(sk);
	record.receive_queue = queues.receive;
	record.send_queue = queues.send;
	bpf_seq_write(meta->seq, &record, sizeof(record));
	return 0;
}
