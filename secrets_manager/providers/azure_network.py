"""The way to a vault, step by step, for `doctor secrets`: its name, a connection, TLS."""

import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import certifi

from secrets_manager.provider import Check


def reachable(url: str, timeout: float, ca_bundle: str | None) -> Iterator[Check]:
    """Look the URL's host up, connect, and check its certificate; ends with the first error."""
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or 443
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        # The proxy looks the name up and connects; what this machine could say of it proves nothing.
        yield Check("ok", f"{name} is reached through the proxy of HTTPS_PROXY")
        return
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        yield Check(
            "error",
            f"the name {name} cannot be resolved",
            "check secrets.providers.azure.vault_url; for a private endpoint, that the zone "
            "privatelink.vaultcore.azure.net is linked to this network",
        )
        return
    address = str(found[0][4][0])
    yield Check("ok", f"{name} is {address}")
    try:
        with socket.create_connection((name, port), timeout) as connection:
            context = ssl.create_default_context(cafile=ca_bundle or _public_authorities())
            with context.wrap_socket(connection, server_hostname=name) as secured:
                version = secured.version()
    except ssl.SSLCertVerificationError as error:
        yield Check(
            "error",
            f"the certificate of {name} is not trusted: {error.verify_message}",
            "name the authority's PEM file in secrets.providers.azure.ca_bundle",
        )
    except (ssl.SSLError, ConnectionResetError) as error:
        cause = getattr(error, "reason", None) or error.strerror
        yield Check("error", f"no TLS with {name}: {cause}", "look for a proxy or gateway in between")
    except OSError as error:
        cause = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
        yield Check(
            "error",
            f"no connection to {address} port {port}: {cause}",
            "let this machine's network reach it (outgoing TCP), or set HTTPS_PROXY",
        )
    else:
        yield Check("ok", f"connected to {address} with {version}")


def _public_authorities() -> str:
    """Those that the Azure SDK's transport trusts."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
