"""Runs commands of this checkout inside QEMU, on the kernels of vagrant/kernels.toml."""
