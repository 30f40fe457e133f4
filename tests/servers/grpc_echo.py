"""A gRPC server or client of ordinary make: it knows nothing of this tool.

    grpc_echo.py serve PORT             prints "ready"; ends when its stdin does
    grpc_echo.py call PORT COUNT SIZE   prints how many answers were right

At the end the server prints its voluntary context switches, of which a sleep in epoll_wait is one.
"""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD = "/echo.Echo/Reverse"
_LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Reverse(grpc.GenericRpcHandler):
    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request[::-1])


def serve(port: int) -> None:
    server = grpc.server(ThreadPoolExecutor(2), options=_LARGE)
    server.add_generic_rpc_handlers((Reverse(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(None).wait()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, flush=True)


def call(port: int, count: int, size: int) -> None:
    right = 0
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_LARGE) as channel:
        ask = channel.unary_unary(METHOD)
        for number in range(count):
            request = number.to_bytes(4, "big") + bytes(range(256)) * (size // 256)
            right += ask(request, timeout=20) == request[::-1]
    print(right, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[2])) if sys.argv[1] == "serve" else call(*map(int, sys.argv[2:]))
