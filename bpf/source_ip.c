// SPDX-License-Identifier: GPL-2.0
/* All connections of one client address to one listener. */
#include "reuseport.h"

enum {
	IPV4 = 0x0800,
	IPV4_SOURCE = 12,	/* offset in the IPv4 header */
	IPV6_SOURCE = 8,	/* offset in the IPv6 header */
};

/* The finalizer of MurmurHash3 (public domain): every bit of the address moves every bit of the result. */
static __always_inline u32 mix(u32 hash)
{
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

REUSEPORT_POLICY(source_ip)
{
	u32 address[4] = {};
	bool ipv4 = ctx->eth_protocol == bpf_htons(IPV4);

	if (policy_load_ip(ctx, ipv4 ? IPV4_SOURCE : IPV6_SOURCE, address, ipv4 ? 4 : 16))
		return ctx->hash;

	return mix(mix(mix(mix(address[0]) ^ address[1]) ^ address[2]) ^ address[3]);
}
