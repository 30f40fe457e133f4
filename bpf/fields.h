/* SPDX-License-Identifier: GPL-2.0 */
/* How a program reads a field of a kernel structure, at the offset that BTF says. */
#pragma once

/* By any pointer: a call. */
#define READ(to, from, offset) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(from) + (offset))

/* By a pointer whose type the verifier knows: no call. */
#define LOAD(type, from, offset) (*(type *)((void *)(from) + (offset)))
