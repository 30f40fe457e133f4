/* SPDX-License-Identifier: GPL-2.0 */
/* The queues of a UDP socket, as udp_diag_get_info() of net/ipv4/udp_diag.c has them. */
#pragma once

#include "fields.h"

static __always_inline void read_queues(u32 *receive_queue, u32 *send_queue, void *sk)
{
	u32 received = 0, deficit = 0, sending = 0;

	READ(received, sk, OFF_RMEM_ALLOC);
	READ(deficit, sk, OFF_FORWARD_DEFICIT);
	READ(sending, sk, OFF_WMEM_ALLOC);
	*receive_queue = received - deficit;
	*send_queue = sending ? sending - 1 : 0;
}
