/* SPDX-License-Identifier: GPL-2.0 */
#pragma once
typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef short __s16, s16;
typedef unsigned short __u16, u16;
typedef int __s32, s32;
typedef unsigned int __u32, u32;
typedef long long __s64, s64;
typedef unsigned long long __u64, u64;

#define __aligned_u64 __u64 __attribute__((aligned(8)))
