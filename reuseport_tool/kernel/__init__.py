"""One module per kernel interface. Nothing above this layer imports ctypes, bcc, pyroute2 or scapy."""
