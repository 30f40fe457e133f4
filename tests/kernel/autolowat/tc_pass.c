// SPDX-License-Identifier: GPL-2.0
/* Somebody else's program at a device's ingress. */

int tc_pass(struct __sk_buff *skb)
{
	return 0; /* TC_ACT_OK: those behind it do not run */
}
