"""Where the nodes of a launch meet, as seen from this one: for launch/node.sh, which runs it before torchrun.

meeting.py check HEAD NODES IS_HEAD    prints IS_HOST HOST:PORT LOCAL_ADDRESS INTERFACE; on the head HOST is its own
                                       address, on which it listens
meeting.py wait HEAD SECONDS           until the head answers; where this is the head, until its name is known
meeting.py wait HEAD SECONDS no        the same where this is not the head

Nothing here falls back to localhost: a node that meets nobody there would train alone, or wait in vain.
Of Python's own library alone, for torch takes seconds to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
import sys
import time
from typing import NoReturn

DEFAULT_PORT = 29500
_SIOCGIFADDR = 0x8915


def main(arguments: list[str]) -> None:
    if arguments[0] == "wait":
        wait(*read_endpoint(arguments[1]), int(arguments[2]), *arguments[3:])
        return
    asked, nodes, is_head = arguments[1:]
    host, port = read_endpoint(asked)
    print(*check(host, port, several=int(nodes) > 1, is_head=is_head))


def check(asked: str, port: int, *, several: bool, is_head: str) -> tuple[str, str, str, str]:
    """The four values that are printed, the interface "-" where gloo and NCCL choose one themselves."""
    host, found = asked, resolve(asked)
    if several and is_head == "auto" and is_loopback(found[0]) and not is_own_name(host):
        fail(
            f"--head {host} is {found[0]}, on each node the node itself; give the head's name or address in their "
            "network (with all nodes on one machine: --is-head yes on one, no on the others)"
        )
    hosts = is_head == "yes" or (is_head == "auto" and any(map(is_here, found)))
    alone = not several or (is_head != "auto" and is_loopback(found[0]))  # On one machine.
    if hosts:
        local, host = own_address(host, found), listening_address(host, found, alone=alone)
        require_free(host, port, asked)
        here = host
    else:
        local = here = source_address(host, port, found)
    interface = interface_of(here) or ("-" if alone else interface_for_gloo(here))
    if interface != "-" and not alone and not knows_itself() and not os.environ.get("GLOO_SOCKET_IFNAME"):
        print(
            f"note: {socket.gethostname()} knows itself by no address that others can reach; "
            f"GLOO_SOCKET_IFNAME is {interface}",
            file=sys.stderr,
        )
    return str(hosts).lower(), f"[{host}]:{port}" if ":" in host else f"{host}:{port}", local, interface


def read_endpoint(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT, [IPV6] or [IPV6]:PORT."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", text)
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 2**16:
        fail(f"--head is '{text}'; it must be HOST or HOST:PORT, with a port of 1 to 65535 (without: {DEFAULT_PORT})")
    return match[1] or match[2], port


def resolve(host: str) -> list[str]:
    """The addresses of a name. More than one where it has IPv4 and IPv6, or several interfaces."""
    try:
        return addresses(host)
    except OSError as error:
        fail(
            f"--head {host} cannot be resolved on {socket.gethostname()} ({error.strerror}); "
            "give a name that every node can look up, or the head's address"
        )


def addresses(host: str) -> list[str]:
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


def is_own_name(host: str) -> bool:
    """Whether it is this machine's, of which its own /etc/hosts may say 127.0.1.1. localhost is every machine's."""
    names = {host.partition(".")[0], socket.gethostname().partition(".")[0]}
    return len(names) == 1 and names != {"localhost"}


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def is_here(address: str) -> bool:
    """Whether it is an address of this machine, or of this container where that has a network of its own."""
    with socket.socket(family(address), socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def require_free(address: str, port: int, head: str) -> None:
    try:
        socket.create_server((address, port), family=family(address)).close()
    except OSError as error:
        reason, another = os.strerror(error.errno or 0), port - 1 if port == 2**16 - 1 else port + 1
        fail(
            f"port {port} of {socket.gethostname()}, the head, cannot be had ({reason}); end what uses it, "
            f"or give all nodes another: --head {head}:{another}"
        )


def own_address(host: str, found: list[str]) -> str:
    """The head's. Its name as the others know it, where that leads itself to loopback or to an address from outside."""
    return next((address for address in found if is_here(address) and not is_loopback(address)), host)


def listening_address(host: str, found: list[str], *, alone: bool) -> str:
    """The head's own address on which nodes meet: that which was given, else that of its interface.

    Its name may lead the head itself to loopback, or to an address from outside, as behind NAT.
    """
    own = [address for address in found if is_here(address)]
    fitting = [address for address in own if alone or not is_loopback(address)]
    if fitting:
        return min(fitting, key=lambda address: ":" in address)  # IPv4, if it has both: not every node has the other.
    known = interfaces()
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")
    chosen = [known[name] for name in named if name in known] or list(known.values())
    if len(chosen) != 1:
        fail(
            f"--head {host} is {' or '.join(found)}, no address of {socket.gethostname()} that others can reach; "
            f"set GLOO_SOCKET_IFNAME to its interface in the nodes' network ({', '.join(known) or 'it has none'})"
        )
    return chosen[0]


def source_address(host: str, port: int, found: list[str]) -> str:
    """This node's own address in the network where the head is. Nothing is sent."""
    for address in found:
        with socket.socket(family(address), socket.SOCK_DGRAM) as trial, contextlib.suppress(OSError):
            trial.connect((address, port))
            return str(trial.getsockname()[0])
    return fail(
        f"--head {host} is {' or '.join(found)}, and no way leads there from {socket.gethostname()}; "
        "give its address in a network that both are in"
    )


def interface_of(address: str) -> str | None:
    """The interface with this address; None where it is IPv6, or not the interface's first."""
    if is_loopback(address):
        return "lo"
    return next((name for name, known in interfaces().items() if known == address), None)


def knows_itself() -> bool:
    """Whether this machine's own name leads to an address that others can reach.

    gloo binds to the first address of that name that it can. Where that is
    none, or loopback as in Debian's /etc/hosts, it takes loopback, and no other
    node can connect.
    """
    try:
        own = next(filter(is_here, addresses(socket.gethostname())), None)
    except OSError:
        own = None
    return own is not None and not is_loopback(own)


def interface_for_gloo(local: str) -> str:
    """The only interface, if gloo needs to be told; "-" if not. For an address whose interface is not known."""
    if os.environ.get("GLOO_SOCKET_IFNAME") or knows_itself():
        return "-"
    known = list(interfaces())
    if len(known) != 1:
        fail(
            f"{socket.gethostname()} does not know itself by an address that others can reach; "
            f"set GLOO_SOCKET_IFNAME to the interface of {local} ({', '.join(known) or 'it has none'})"
        )
    return known[0]


def interfaces() -> dict[str, str]:
    """The first IPv4 address of each interface but loopback."""
    found = {}
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            found[name] = socket.inet_ntoa(answer[20:24])
    return {name: address for name, address in found.items() if not is_loopback(address)}


def wait(host: str, port: int, seconds: int, is_head: str = "auto") -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_head == "auto" and any(map(is_here, addresses(host))):
                return
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                fail(
                    f"--head {host}:{port} does not answer within {seconds} s ({error}); start launch/node.sh there "
                    "too (with --is-head yes if it has that address from elsewhere, as behind NAT), open the port to "
                    "the nodes, or give --wait SECONDS",
                    code=1,  # It may be there the next time.
                )
        time.sleep(0.5)


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
