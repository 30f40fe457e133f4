// SPDX-License-Identifier: GPL-2.0
/* All connections of one client address to one listener. */
#include "reuseport.h"

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

	if (policy_load_source(ctx, address))
		return ctx->hash >> 1;

	/* Halved, so that no address means REUSEPORT_DROP. */
	return mix(mix(mix(mix(address[0]) ^ address[1]) ^ address[2]) ^ address[3]) >> 1;
}
