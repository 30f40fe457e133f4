/* SPDX-License-Identifier: GPL-2.0 */
/* The integer types that BCC's bpf.h and helpers.h expect of the kernel's headers. */
#pragma once
#include <asm/types.h>

typedef __u16 __le16, __be16;
typedef __u32 __le32, __be32;
typedef __u64 __le64, __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;

typedef _Bool bool;
enum { false = 0, true = 1 };

#define NULL ((void *)0)
typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#define __always_inline inline __attribute__((always_inline))
