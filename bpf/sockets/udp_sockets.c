// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over UDP sockets that writes one record for each that has a port. A socket that nobody has
 * asked for its cookie before gets one here.
 */
#include "sockets/sockets.h"
#include "sockets/udp_queues.h"

int bpf_iter__udp(struct bpf_iter_udp_context *ctx)
{
	void *sk = ctx->udp_sk;
	struct socket_record record = {};

	if (!sk)
		return 0;
	read_common(&record, sk, ctx->uid);
	record.inode = read_inode(sk);
	read_queues(&record.receive_queue, &record.send_queue, sk);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
