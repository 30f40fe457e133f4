"""UDP: what the kernel tells of datagrams and flows."""
