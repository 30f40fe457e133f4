// SPDX-License-Identifier: GPL-2.0
/* All connections of one client address to one listener. */
#include "reuseport.h"

REUSEPORT_POLICY(source_ip)
{
	u32 address[4] = {};

	if (policy_load_source(ctx, address))
		return ctx->hash >> 1;

	/* Halved, so that no address means REUSEPORT_DROP. */
	return mix(mix(mix(mix(address[0]) ^ address[1]) ^ address[2]) ^ address[3]) >> 1;
}
