// SPDX-License-Identifier: GPL-2.0
/* The kernel's own hash of addresses and ports: what a group does without a program. */
#include "reuseport.h"

REUSEPORT_POLICY(hash)
{
	return ctx->hash;
}
