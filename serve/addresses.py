"""Allows requests only to public addresses, so that nobody reaches our own network through us."""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType

_NAT64 = IPv6Network("64:ff9b::/96")
_IPV6_UNICAST = IPv6Network("2000::/3")  # all IPv6 space that was ever assigned
# Networks that `is_global` counts as public in some version of Python.
_NEVER_PUBLIC = (
    IPv4Network("168.63.129.16"),  # Azure's own services, the same in every virtual machine
    IPv4Network("192.0.0.0/24"),  # protocol assignments; Oracle's metadata
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("240.0.0.0/4"),
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them: a tunnel to any IPv4 address
    IPv6Network("2001:db8::/32"),
    IPv6Network("2002::/16"),  # 6to4, also a tunnel
    IPv6Network("3fff::/20"),
)


class PrivateAddressError(OSError):
    """A connection to a non-public address was refused before a socket was opened.

    All these errors have one text, because aiohttp joins the errors of a host's addresses if they differ.
    """

    def __init__(self) -> None:
        super().__init__("the host's address is not public")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is one host on the internet. IPv4 in IPv6 (mapped, NAT64) is judged by the IPv4 address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _IPV6_UNICAST:
            return False
    special = any(address in network for network in _NEVER_PUBLIC)
    return address.is_global and not address.is_multicast and not special


def public_socket(addr_info: AddrInfoType) -> socket.socket:
    """A socket for an address about to be dialled: aiohttp's `socket_factory`, called for each address.

    It checks the resolved address, so a name that resolves differently later gains nothing.
    Raises PrivateAddressError if the address is not public.
    """
    family, kind, protocol, _, sockaddr = addr_info
    if not is_public(ip_address(sockaddr[0])):
        raise PrivateAddressError
    return socket.socket(family, kind, protocol)
