// SPDX-License-Identifier: GPL-2.0
/* The least a program can do that selects: the hash over one fixed sockarray. */
#include "abi.h"

int bench_select(struct sk_reuseport_md *ctx)
{
	u32 slot = ctx->hash % LISTENERS;

	bpf_sk_select_reuseport(ctx, MAP(SOCKARRAY_FD), &slot, 0);
	return SK_PASS;
}
