/* SPDX-License-Identifier: GPL-2.0 */
/* BCC force-includes this file of the kernel tree; its bpf.h asks for the one symbol below. */
#pragma once
#define CONFIG_BPF_SYSCALL 1
