/* SPDX-License-Identifier: GPL-2.0 */
/* Only the kprobe type checks the version, and no program here is one. */
#pragma once
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
