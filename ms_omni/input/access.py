"""Which hosts may be asked for media, which files may be opened, and how much of either is read."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from ms_omni.errors import InputError, MediaError

MIB, GIB = 1 << 20, 1 << 30
SCHEMES = ("http", "https", "file", "data")
_LOCAL_ENDINGS = (
    *(".localhost", ".local", ".lan", ".internal", ".intranet", ".home.arpa", ".home", ".localdomain"),
    *(".corp", ".svc", ".test"),
)
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SERVICES = tuple(  # of clouds and protocols, in ranges that older Python versions count as public
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
)
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True)
class AccessPolicy:
    """What may be opened on behalf of a conversation, and within which limits.

    The default suits a program whose caller chooses the media: it fetches any address and opens any file that is named. An address
    that is public never leads elsewhere, though: neither a redirect nor the lookup of a public name ends at a loopback,
    link-local, private or otherwise special address. For conversations of strangers there is `AccessPolicy.public()`.

    It is given as `policy=` to the processor, `process_mm_info` and the like, or set for all that is opened in a block:

        with AccessPolicy.public().in_force():
            inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)

    Attributes:
        hosts: "any"; "public": those with public addresses only; or names, of which ".example.com" means all below it. Names
            that are listed are asked whatever their addresses are.
        files: "any", "none", or folders below which paths and file:// may lead, links resolved.
        schemes: of addresses, out of `SCHEMES`. Base64 and bytes are no addresses.
        proxies: use those of the environment (http_proxy, https_proxy, no_proxy). A proxy looks names up once more by itself, so
            switch this off to rely on the addresses, as `public()` does.
        redirects: how many are followed.
        image_bytes, audio_bytes, video_bytes: the most that is downloaded, or read from an open file, for one medium.
        inline_bytes: the most that a data: URI or base64 may hold.
        decoded_bytes: the most that all media of the conversations of a call hold together, decoded and in the size that the
            model reads.
        silence_s: the longest wait for a server's next byte, in seconds. total_s: for a whole download, redirects included (a
            lookup of a name takes what the system's resolver allows, before that).
    """

    hosts: Literal["any", "public"] | Sequence[str] = "any"
    files: Literal["any", "none"] | Sequence[str | os.PathLike[str]] = "any"
    schemes: Sequence[str] = SCHEMES
    proxies: bool = True
    redirects: int = 5
    image_bytes: int = 128 * MIB
    audio_bytes: int = 1 * GIB
    video_bytes: int = 4 * GIB
    inline_bytes: int = 256 * MIB
    decoded_bytes: int = 16 * GIB
    silence_s: float = 30.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        for name, choices in (("hosts", ("any", "public")), ("files", ("any", "none")), ("schemes", ())):
            value = getattr(self, name)
            if value in choices:
                continue
            if isinstance(value, (str, os.PathLike)) or not all(isinstance(item, (str, os.PathLike)) for item in value):
                expected = ", ".join(map(repr, choices)) + " or a list" if choices else "a list"
                raise InputError(f"AccessPolicy: {name} is {value!r}, expected {expected}")
            object.__setattr__(self, name, tuple(value))
        if unknown := set(self.schemes) - set(SCHEMES):
            raise InputError(
                f"AccessPolicy: schemes has {', '.join(sorted(unknown))}, expected some of {', '.join(SCHEMES)}"
            )
        sizes = ("image_bytes", "audio_bytes", "video_bytes", "inline_bytes", "decoded_bytes")
        for name in ("redirects", *sizes, "silence_s", "total_s"):
            value, kinds = getattr(self, name), (int, float) if name.endswith("_s") else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < float("inf"):
                raise InputError(f"AccessPolicy: {name} is {value!r}, expected a number that is not negative")

    @classmethod
    def public(cls, **changes: Any) -> AccessPolicy:
        """For strangers' conversations: hosts with public addresses, no files of this machine, no proxies; with changes."""
        values: dict[str, Any] = {"hosts": "public", "files": "none", "proxies": False, **changes}
        return cls(**values)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Holds for everything that this thread, or task, opens in the block; threads that it starts are not included."""
        token = _in_force.set(self)
        try:
            yield
        finally:
            _in_force.reset(token)

    def limit_bytes(self, what: str) -> int:
        """The most bytes of a "picture" (or "image"), "sound" ("audio") or "video"."""
        kinds = {
            "picture": self.image_bytes,
            "image": self.image_bytes,
            "sound": self.audio_bytes,
            "audio": self.audio_bytes,
        }
        return kinds.get(what, self.video_bytes)

    def check_decoded(self, nbytes: int, name: str) -> None:
        """Raises `MediaError` for media that are over `decoded_bytes`."""
        if nbytes > self.decoded_bytes:
            raise MediaError(
                f"With {name} the media hold over {self.decoded_bytes:,} bytes once they are decoded, and no more are taken (see "
                "AccessPolicy); give fewer of them, or smaller or shorter ones."
            )

    def may_look_up(self, host: str) -> bool:
        """Whether a host, named in ASCII, may be asked at all, wherever it is."""
        return not isinstance(self.hosts, tuple) or _is_listed(host, self.hosts)

    def refusal(self, host: str, address: str | None, referrer: tuple[str, str | None] | None) -> str | None:
        """Why a host that may be looked up may not be asked at this address; None when it may.

        Args:
            host: as the address names it, in ASCII.
            address: what a lookup says it is; None where only a proxy can look it up.
            referrer: host and address of the server that redirected here, if one did.
        """
        if isinstance(self.hosts, tuple):
            return None
        if _counts_as_public(host, address):
            return None
        where = f"{host} ({address or 'which only the proxy can look up'})"
        if self.hosts == "public":
            return f"{where} is not a public address, and only those may be asked"
        if not is_local_name(host):
            return f"the public name {where} leads to an address that is not public; AccessPolicy(hosts=...) can allow it"
        if referrer is not None and (_counts_as_public(*referrer) or (host != referrer[0] and address != referrer[1])):
            return f"{referrer[0]} redirects to {where}, which is not a public address"
        return None


_DEFAULT = AccessPolicy()
_in_force: ContextVar[AccessPolicy] = ContextVar("access policy", default=_DEFAULT)


def policy_in_force() -> AccessPolicy:
    """The policy of the innermost `in_force` block, else the default."""
    return _in_force.get()


def policy_scope(policy: AccessPolicy | None) -> AbstractContextManager[None]:
    """`policy.in_force()`; without a policy, nothing changes."""
    return nullcontext() if policy is None else policy.in_force()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public network: none that is special, nor one that hides such an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_V6 or ip.sixtofour or ip.teredo or (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP:
            return False
    special = ip.is_multicast or ip.is_reserved or any(ip in network for network in _SERVICES)
    return ip.is_global and not special


def _counts_as_public(host: str, address: str | None) -> bool:
    return not is_local_name(host) if address is None else is_public(address)


def is_local_name(host: str) -> bool:
    """Whether a host is named by a number, or by a name that only a local network gives: no dot, or an ending such as .lan."""
    name = host.rstrip(".").lower()
    last = name.rpartition(".")[2]
    return ":" in name or "." not in name or last[:1].isdigit() or name.endswith(_LOCAL_ENDINGS)


def _is_listed(host: str, hosts: Sequence[str]) -> bool:
    name = host.rstrip(".").lower()
    for listed in hosts:
        listed = listed.lower().removeprefix("*").rstrip(".")
        if name == listed or (listed.startswith(".") and name.endswith(listed)):
            return True
    return False
