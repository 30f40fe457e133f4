/* SPDX-License-Identifier: GPL-2.0 */
/* How the iterators read what the kernel keeps of a socket's reuseport group, at offsets (OFF_…) of the kernel's BTF. */
#pragma once

#include "fields.h"
#include "abi.h"

enum {
	SOCKS_STEP = 16,  /* pointers of socks[] read at once */
	SOCKS_STEPS = 64, /* a group has as many sockets as fit into them, or its order stays unknown */
};

static __always_inline void read_program(struct membership *membership)
{
	void *program = NULL, *aux = NULL;

	READ(program, membership->group, OFF_PROG);
	if (!program)
		return;
	membership->has_program = 1;
	READ(aux, program, OFF_AUX);
	if (aux)
		READ(membership->program_id, aux, OFF_ID);
}

#ifdef OFF_SOCKS
static __always_inline u32 index_in_socks(void *group, void *sk, u32 size)
{
	void *socks[SOCKS_STEP];

#pragma clang loop unroll(disable)
	for (u32 step = 0; step < SOCKS_STEPS; step++) {
		u32 begin = step * SOCKS_STEP;

		if (begin >= size ||
		    bpf_probe_read_kernel(socks, sizeof(socks), group + OFF_SOCKS + begin * sizeof(sk)))
			break;
#pragma clang loop unroll(full)
		for (u32 at = 0; at < SOCKS_STEP; at++)
			if (socks[at] == sk)
				return begin + at < size ? begin + at : NOT_IN_SOCKS;
	}
	return NOT_IN_SOCKS;
}
#else
/* Nobody asks. */
static __always_inline u32 index_in_socks(void *group, void *sk, u32 size)
{
	return NOT_IN_SOCKS;
}
#endif

static __always_inline void read_membership(struct membership *membership, void *sk)
{
	u16 size = 0;

	membership->index = NOT_IN_SOCKS;
	READ(membership->group, sk, OFF_REUSEPORT_CB);
	if (!membership->group)
		return;
	READ(size, membership->group, OFF_NUM_SOCKS);
	membership->size = size;
	membership->index = index_in_socks((void *)membership->group, sk, size);
	read_program(membership);
}
