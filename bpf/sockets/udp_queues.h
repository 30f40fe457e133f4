/* SPDX-License-Identifier: GPL-2.0 */
/* The queues of a UDP socket, as udp_diag_get_info() of net/ipv4/udp_diag.c has them. */
#pragma once

#include "fields.h"

struct udp_queues {
	u32 receive;
	u32 send;
};

static __always_inline struct udp_queues read_queues(void *sk)
{
	u32 received = 0, deficit = 0, sending = 0;

	READ(received, sk, OFF_RMEM_ALLOC);
	READ(deficit, sk, OFF_FORWARD_DEFICIT);
	READ(sending, sk, OFF_WMEM_ALLOC);
	return (struct udp_queues){ received - deficit, sending ? sending - 1 : 0 };
}
