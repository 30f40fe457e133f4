// SPDX-License-Identifier: GPL-2.0
/* All connections of one client address to one listener. */
#include "reuseport.h"

enum {
	IPV4 = 0x0800,
	IPV4_SOURCE = 12,	/* offset in the IPv4 header */
	IPV6_SOURCE = 8,	/* offset in the IPv6 header */
	GOLDEN_RATIO = 0x61c88647,
};

REUSEPORT_POLICY(source_ip)
{
	u32 address[4] = {};
	bool ipv4 = ctx->eth_protocol == bpf_htons(IPV4);

	if (policy_load_ip(ctx, ipv4 ? IPV4_SOURCE : IPV6_SOURCE, address, ipv4 ? 4 : 16))
		return ctx->hash;

	/* Fold, then multiply and take the high half, so that neighbours are spread. */
	return ((u64)(address[0] ^ address[1] ^ address[2] ^ address[3]) * GOLDEN_RATIO) >> 16;
}
