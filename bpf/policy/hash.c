// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's own choice, what a group does without a program: reciprocal_scale() of the hash of addresses and
 * ports (net/core/sock_reuseport.c). With the slots in the order of socks[] a flow keeps its socket.
 */
#include "reuseport.h"

REUSEPORT_POLICY(hash)
{
	return (u64)ctx->hash * members >> 32;
}
