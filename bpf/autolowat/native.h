/* SPDX-License-Identifier: GPL-2.0 */
/* What the engine native keeps of each socket, with the socket locked. */
#pragma once
#include "autolowat/autolowat.h"

/* In reuseport_tool/kernel/autolowat.py: its size. */
struct state {
	struct stream stream;
	u32 armed;
	u32 flags; /* callbacks that we switched on */
};

_Static_assert(sizeof(struct state) == SIZEOF_STATE, "struct state");
