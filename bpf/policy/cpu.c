// SPDX-License-Identifier: GPL-2.0
/* The slot with the number of the CPU that the SYN arrived on. */
#include "reuseport.h"

REUSEPORT_POLICY(cpu)
{
	return bpf_get_smp_processor_id();
}
