// SPDX-License-Identifier: GPL-2.0
/* One after the other, over all CPUs. */
#include "reuseport.h"

REUSEPORT_POLICY(round_robin)
{
	return next_in_turn(CURSOR_NEW);
}
