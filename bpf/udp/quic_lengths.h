/* SPDX-License-Identifier: GPL-2.0 */
/* The map `quic`: what is known of the servers, by generation % GENERATIONS, and of the group. */
#pragma once

/* After the lengths of the generations. */
#define QUIC_PORT GENERATIONS /* that the group is bound to, network order */

static __always_inline u32 *quic_element(u32 index)
{
	return bpf_map_lookup_elem(MAP(QUIC_FD), &index);
}

/* How long the connection IDs are that the servers of a generation make; 0 for unknown, and for none. */
static __always_inline u32 id_length(u32 generation)
{
	u32 *length = quic_element(generation % GENERATIONS);

	return length ? *length : 0;
}
