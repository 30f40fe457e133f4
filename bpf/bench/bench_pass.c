// SPDX-License-Identifier: GPL-2.0
/* The least a program can do: leave the choice to the kernel. */
int bench_pass(struct sk_reuseport_md *ctx)
{
	return SK_PASS;
}
