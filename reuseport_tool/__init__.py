"""Hot reload of SO_REUSEPORT servers without a lost connection, by BPF socket migration."""

__version__ = "0.1.0"
