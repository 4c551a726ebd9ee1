"""Which foreign addresses may be called: the deny list, and the form that an address must have. No I/O here.

The list is explicit, because `ipaddress.is_global` of Python 3.11 allows multicast, NAT64, 6to4, site-local and
IPv4-compatible addresses, 192.88.99.1 and 168.63.129.16.
"""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx2

from core.errors import AddressRefused

_MAX_URL = 8192
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?")
_PORTS = {"http": 80, "https": 443}

_DENIED_4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by carriers; holds Alibaba's metadata service",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "Azure's metadata service",
    "169.254.0.0/16": "link-local; holds the metadata services",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments; holds Oracle's metadata service",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT relays",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved; ends in broadcast",
}

# Addresses with an IPv4 address in their last 32 bits: that address decides, since it may be public.
# In a network with DNS64, every IPv4-only host has an address in 64:ff9b::/96.
_CARRIES_4 = {"::ffff:0:0/96": "IPv4-mapped", "64:ff9b::/96": "NAT64"}

_DENIED_6 = {
    "::/96": "unspecified, loopback or IPv4-compatible",
    "64:ff9b:1::/48": "local NAT64",
    "100::/64": "discarded",
    "2001::/23": "protocol assignments, among them Teredo and benchmarks",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "AS112",
    "3fff::/20": "documentation",
    "5f00::/16": "segment routing",
    "fc00::/7": "unique local; holds Amazon's metadata service fd00:ec2::254",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_GLOBAL_6 = IPv6Network("2000::/3")  # the only range that is assigned so far; the rest is denied

_NETWORKS_4 = [(IPv4Network(network), why) for network, why in _DENIED_4.items()]
_NETWORKS_6 = [(IPv6Network(network), why) for network, why in _DENIED_6.items()]
_CARRIERS = [IPv6Network(network) for network in _CARRIES_4]


def denied(address: str) -> str | None:
    """The reason why the IP address `address` must not be called; None if it may be called."""
    if "%" in address:
        return "bound to one interface"
    try:
        ip = ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(ip, IPv6Address):
        if any(ip in carrier for carrier in _CARRIERS):
            return denied(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
        named = next((why for network, why in _NETWORKS_6 if ip in network), None)
        return named or (None if ip in _GLOBAL_6 else "not assigned")
    return next((why for network, why in _NETWORKS_4 if ip in network), None)


@dataclass(frozen=True)
class Address:
    """A valid http or https address. Its text form has only the host: the rest may be a secret."""

    scheme: str
    host: str  # lower case, IDNA; an IPv6 address without brackets
    port: int
    target: bytes  # path and query
    netloc: str  # as in the Host header
    url: httpx2.URL

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def host_port(self) -> tuple[str, int]:
        """The form of an entry in the operator's allow list."""
        return self.host.rstrip("."), self.port

    def joined(self, onward: str) -> httpx2.URL:
        """Where a redirect to `onward` leads. Raises AddressRefused if `onward` is not a valid address."""
        try:
            return self.url.join(onward)
        except (httpx2.InvalidURL, ValueError) as error:
            raise AddressRefused(f"{self} redirects to an invalid address") from error


def parse_address(url: str | httpx2.URL, allowed: frozenset[tuple[str, int]] = frozenset()) -> Address:
    """Parse `url`. Raises AddressRefused if it is not http(s) or contains a user.

    Unless its host and port are in `allowed`, a port other than 80 and 443 and a denied IP address are refused too.
    """
    try:
        read = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise AddressRefused("the address is not a valid URL") from error
    host = read.raw_host.decode("ascii")
    port = _PORTS.get(read.scheme, 0) if read.port is None else read.port
    if len(str(read)) > _MAX_URL:
        raise AddressRefused(f"the address is longer than {_MAX_URL} characters")
    if read.scheme not in _PORTS:
        raise AddressRefused("the address must begin with http:// or https://")
    if read.userinfo:
        raise AddressRefused("the address must not contain a user or password")
    if ":" not in host and not _HOST.fullmatch(host):
        raise AddressRefused("the address has no valid host name")
    address = Address(read.scheme, host, port, read.raw_path, read.netloc.decode("ascii"), read)
    if address.host_port not in allowed:
        _check_unlisted(address)
    return address


def _check_unlisted(address: Address) -> None:
    if address.port not in _PORTS.values():
        raise AddressRefused(f"{address}: the port must be 80 or 443")
    name = address.host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        raise AddressRefused(f"{address} is this machine")
    literal = _literal(name)
    if literal and (why := denied(literal)):
        raise AddressRefused(f"{address} is not a public address ({why})")


def _literal(name: str) -> str | None:
    """The IP address in `name`, in any form that the C library accepts: 2130706433, 0x7f.1, 017700000001."""
    if ":" in name:
        return name
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return None


def parse_host_ports(allow_hosts: list[str] | tuple[str, ...]) -> frozenset[tuple[str, int]]:
    """Parse the operator's `host:port` entries; IPv6 in brackets. Raises ValueError for an entry without a port."""
    pairs = set()
    for entry in allow_hosts:
        host, colon, port = entry.strip().lower().rpartition(":")
        if not colon or not port.isdigit() or not host:
            raise ValueError(f"{entry!r} is not host:port")
        pairs.add((host.strip("[]").rstrip("."), int(port)))
    return frozenset(pairs)
