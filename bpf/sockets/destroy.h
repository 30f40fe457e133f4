/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs share that end sockets: a socket is ended if its cookie is in the map of targets, and
 * it still has the addresses, ports and device that it had when it was chosen, and one of the states.
 */
#pragma once
#include "sockets/sockets.h"

/* A kfunc: the tool marks calls of this number as such before it loads the program. */
static int (*bpf_sock_destroy)(void *sk) = (void *)KFUNC_ID;

static __always_inline bool is_same(struct tuple *now, struct tuple *then)
{
	u64 *left = (u64 *)now, *right = (u64 *)then;

	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3] &&
	       now->local_port == then->local_port && now->remote_port == then->remote_port &&
	       now->family == then->family && now->device == then->device;
}

static __always_inline bool is_target(void *sk, u64 cookie)
{
	struct target *target = bpf_map_lookup_elem(MAP(TARGETS_FD), &cookie);
	struct tuple now = {};

	if (!target)
		return false;
	read_tuple(&now, sk);
	return is_same(&now, &target->tuple) && target->states >> now.state & 1;
}

/* End the socket if it is one of the targets, and write what came of it. */
static __always_inline int end_target(struct bpf_iter_meta *meta, void *sk)
{
	struct outcome outcome = {};

	if (!sk)
		return 0;
	outcome.cookie = socket_cookie(sk);
	if (!is_target(sk, outcome.cookie))
		return 0;
	outcome.error = bpf_sock_destroy(sk);
	bpf_seq_write(meta->seq, &outcome, sizeof(outcome));
	return 0;
}
