"""The meeting point of a launch's nodes, as seen from this node. launch/node.sh runs it before torchrun.

meeting.py check HEAD NODES IS_HEAD    print IS_HOST HOST:PORT LOCAL_ADDRESS INTERFACE; on the head HOST is its own
                                       address, on which it listens
meeting.py wait HEAD SECONDS           wait until the head answers; on the head, until its name is known
meeting.py wait HEAD SECONDS no        the same for a node that is not the head

Nothing here falls back to localhost: a node that meets nobody there would train alone, or wait in vain.
Uses Python's own library only, since torch takes seconds to import.
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
RESOLVER_SECONDS = 10
"""A name server that does not answer is asked again for so long: a pod's network may still come up."""
_SIOCGIFADDR = 0x8915


def main(arguments: list[str]) -> None:
    """Run a command line, as above."""
    if arguments[0] == "wait":
        wait(*read_endpoint(arguments[1]), int(arguments[2]), *arguments[3:])
        return
    asked, nodes, is_head = arguments[1:]
    host, port = read_endpoint(asked)
    print(*check(host, port, several=int(nodes) > 1, is_head=is_head))


def check(asked: str, port: int, *, several: bool, is_head: str) -> tuple[str, str, str, str]:
    """Return the four values to print. The interface is "-" where gloo and NCCL choose one themselves."""
    host, found = asked, resolve(asked)
    if several and is_head == "auto" and _is_loopback(found[0]) and not is_own_name(host):
        fail(
            f"--head {host} is {found[0]}, on each node the node itself; give the head's name or address in their "
            "network (with all nodes on one machine: --is-head yes on one, no on the others)"
        )
    hosts = is_head == "yes" or (is_head == "auto" and any(map(is_here, found)))
    alone = not several or (is_head != "auto" and _is_loopback(found[0]))  # On one machine.
    if hosts:
        local, host = own_address(host, found), listening_address(host, found, alone=alone)
        _require_free(host, port, asked)
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
    """Return host and port of HOST, HOST:PORT, [IPV6] or [IPV6]:PORT."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", text)
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 2**16:
        fail(f"--head is '{text}'; it must be HOST or HOST:PORT, with a port of 1 to 65535 (without: {DEFAULT_PORT})")
    return match[1] or match[2], port


def resolve(host: str) -> list[str]:
    """Return the addresses of a name. It has several with IPv4 and IPv6, or with several interfaces."""
    deadline = time.monotonic() + RESOLVER_SECONDS
    while True:
        try:
            return _addresses(host)
        except OSError as error:
            for_now = error.errno == socket.EAI_AGAIN
            if not for_now or time.monotonic() > deadline:
                fail(
                    f"--head {host} cannot be resolved on {socket.gethostname()} ({error.strerror}); "
                    "give a name that every node can look up, or the head's address",
                    code=1 if for_now else 2,  # The server may answer the next time.
                )
        time.sleep(0.5)


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # A part of the name is empty, or longer than 63 characters.
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_own_name(host: str) -> bool:
    """Return whether a name is this machine's own. Its /etc/hosts may give 127.0.1.1. localhost is every machine's."""
    names = {host.partition(".")[0], socket.gethostname().partition(".")[0]}
    return len(names) == 1 and names != {"localhost"}


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def is_here(address: str) -> bool:
    """Return whether an address is this machine's, or this container's where it has a network of its own."""
    with socket.socket(_family(address), socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _require_free(address: str, port: int, head: str) -> None:
    try:
        socket.create_server((address, port), family=_family(address)).close()
    except OSError as error:
        reason, another = os.strerror(error.errno or 0), port - 1 if port == 2**16 - 1 else port + 1
        fail(
            f"port {port} of {socket.gethostname()}, the head, cannot be had ({reason}); end what uses it, "
            f"or give all nodes another: --head {head}:{another}"
        )


def own_address(host: str, found: list[str]) -> str:
    """Return the head's own address; its name, if that leads the head to loopback or to an address from outside."""
    return next((address for address in found if is_here(address) and not _is_loopback(address)), host)


def listening_address(host: str, found: list[str], *, alone: bool) -> str:
    """Return the head's own address on which nodes meet: the one given, else the one of its interface.

    Its name may lead the head itself to loopback, or to an address from outside, as behind NAT.
    """
    own = [address for address in found if is_here(address)]
    fitting = [address for address in own if alone or not _is_loopback(address)]
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
    """Return this node's own address in the head's network. Nothing is sent."""
    for address in found:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as trial, contextlib.suppress(OSError):
            trial.connect((address, port))
            return str(trial.getsockname()[0])
    return fail(
        f"--head {host} is {' or '.join(found)}, and no way leads there from {socket.gethostname()}; "
        "give its address in a network that both are in"
    )


def interface_of(address: str) -> str | None:
    """Return the interface with this address; None if it is IPv6, or not the first of its interface."""
    if _is_loopback(address):
        return "lo"
    return next((name for name, known in interfaces().items() if known == address), None)


def knows_itself() -> bool:
    """Return whether this machine's own name leads to an address that others can reach.

    gloo binds to the first address of that name that it can. If there is none, or only loopback as in Debian's
    /etc/hosts, it takes loopback, and no other node can connect.
    """
    try:
        own = next(filter(is_here, _addresses(socket.gethostname())), None)
    except OSError:
        own = None
    return own is not None and not _is_loopback(own)


def interface_for_gloo(local: str) -> str:
    """Return the only interface, if gloo must be given one; else "-". For an address without a known interface."""
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
    """Return the first IPv4 address of each interface except loopback."""
    found = {}
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            found[name] = socket.inet_ntoa(answer[20:24])
    return {name: address for name, address in found.items() if not _is_loopback(address)}


def wait(host: str, port: int, seconds: int, is_head: str = "auto") -> None:
    """Wait until the head answers; exit with code 1 after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_head == "auto" and any(map(is_here, _addresses(host))):
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
    """Print an error, and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
