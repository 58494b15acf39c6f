"""Who we are at AWS, and the clients of its services that say so."""

import importlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from core.errors import ConfigError
from core.settings.models import AwsSecrets
from core.settings.reference import resolve_environ
from secrets_manager.provider import Reason, SecretUnavailable
from secrets_manager.providers.aws_failures import explained

_POOL = 32
_LOOK_AGAIN = 5.0
"""Seconds for which a failed log-in is believed: each try may wait for a metadata service that is not there, and a
thousand secrets would wait for it one after the other."""
_TRY_AGAIN = 0.1
"""The same where trying again may help: long enough for those that wait for the same try, shorter than the resolver's
first pause."""

_STS_REGIONS = {"aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1"}

Client = Any
"""A client of botocore, which makes its methods at run time."""


class AwsLogin:
    """Credentials from the SDK's own chain, or those of a role that they assume; and one client a service and region.

    Thread-safe. Making one reads the SDK's configuration files and asks nothing of the network; raises
    SecretUnavailable (MISCONFIGURED).
    """

    def __init__(
        self, settings: AwsSecrets, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._botocore = _imported("botocore.session")
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str], Client] = {}
        self._failed: tuple[float, SecretUnavailable] | None = None
        self._doubted = float("-inf")
        self._source: Any = None  # botocore's session of the SDK's own chain
        self._session: Any = None  # the one that clients are made from
        values = {
            name: _resolved(name, getattr(settings, name), environ)
            for name in ("region", "profile", "role_arn", "external_id", "endpoint_url", "sts_endpoint_url")
        }
        self.role = values["role_arn"]
        self._external_id, self._session_name = values["external_id"], settings.session_name
        self._endpoints = {"secretsmanager": values["endpoint_url"], "sts": values["sts_endpoint_url"]}
        self._profile = values["profile"]
        config = _imported("botocore.config").Config
        self._config = config(
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            max_pool_connections=_POOL,
            retries={"mode": "standard", "total_max_attempts": 1},  # trying again is the resolver's
        )
        self.region: str | None = values["region"] or self._sdks_own_region()
        if self.region is not None and not re.fullmatch(r"[a-z0-9-]{1,63}", self.region):
            message = "secrets.providers.aws.region is not the name of a region, such as eu-central-1."
            raise SecretUnavailable(message, Reason.MISCONFIGURED)

    def client(self, service: str, region: str) -> Client:
        """The client of a service in a region. Raises SecretUnavailable where there are no credentials."""
        found = self._clients.get((service, region))
        if found is not None:
            return found
        with self._lock:
            if (service, region) not in self._clients:
                self._clients[service, region] = self._made(service, region)
            return self._clients[service, region]

    def kind(self) -> str:
        """What kind of credentials the SDK found, in its own word. Raises as `client` does."""
        with self._lock:
            self._log_in()
            return str(self._source.get_credentials().method)

    def endpoint(self, region: str) -> str:
        """Where secrets of a region are asked for, for people."""
        return self._endpoint("secretsmanager", region) or f"Secrets Manager in {region}"

    def doubt(self) -> None:
        """AWS does not accept our credentials: look for others, such as newer ones in the SDK's files, at the next
        call. Does so once in a few seconds."""
        with self._lock:
            if self._clock() >= self._doubted + _LOOK_AGAIN:
                self._doubted = self._clock()
                self._session, self._clients = None, {}  # not closed: other threads may be using them

    def close(self) -> None:
        """Close the connections of every client."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def _made(self, service: str, region: str) -> Client:
        self._log_in()
        return self._session.create_client(
            service, region_name=region, endpoint_url=self._endpoint(service, region), config=self._config
        )

    def _endpoint(self, service: str, region: str) -> str | None:
        # An endpoint belongs to one region; others are asked where the SDK knows them to be.
        return self._endpoints[service] if self.region in (None, region) else None

    def _sdks_own_region(self) -> str | None:
        failure: SecretUnavailable
        try:
            return self._botocore.Session(profile=self._profile).get_config_variable("region")
        except Exception as error:
            failure = explained(error, "secrets.providers.aws", "AWS")
        raise failure

    def _log_in(self) -> None:
        """Find credentials, or fail as a moment ago. Called under the lock."""
        if self._session is not None:
            return
        self._fail_again()
        failure: SecretUnavailable
        try:
            self._source = self._botocore.Session(profile=self._profile)
            if self._source.get_credentials() is None:
                raise _imported("botocore.exceptions").NoCredentialsError()
            self._session = self._source if self.role is None else self._session_of_role(self.role)
            return
        except Exception as error:
            failure = explained(error, "log-in", "the source of credentials")
        raise self._remembered(failure)

    def _session_of_role(self, role: str) -> Any:
        credentials = _imported("botocore.credentials")
        extra = {"RoleSessionName": self._session_name}
        if self._external_id is not None:
            extra["ExternalId"] = self._external_id
        # Without a region only ARNs are read, each in its own; STS answers in any of the partition for all of them.
        region = self.region or _STS_REGIONS.get(role.removeprefix("arn:").partition(":")[0], "us-east-1")
        fetcher = credentials.AssumeRoleCredentialFetcher(
            client_creator=partial(
                self._source.create_client,
                region_name=region,
                endpoint_url=self._endpoints["sts"],
                config=self._config,
            ),
            source_credentials=self._source.get_credentials(),
            role_arn=role,
            extra_args=extra,
        )
        assumed = credentials.DeferredRefreshableCredentials(
            refresh_using=partial(self._assumed, fetcher.fetch_credentials), method="assume-role"
        )
        session = self._botocore.Session(profile=self._profile)
        session.register_component("credential_provider", credentials.CredentialResolver([_Found(assumed)]))
        return session

    def _assumed(self, fetch: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The role's credentials. botocore calls this under its own lock, one thread at a time."""
        self._fail_again()
        failure: SecretUnavailable
        try:
            return fetch()
        except Exception as error:
            failure = explained(error, str(self.role), "STS")
        raise self._remembered(failure)

    def _remembered(self, failure: SecretUnavailable) -> SecretUnavailable:
        self._failed = (self._clock() + (_TRY_AGAIN if failure.retryable else _LOOK_AGAIN), failure)
        return failure

    def _fail_again(self) -> None:
        if self._failed is not None and self._clock() < self._failed[0]:
            before = self._failed[1]
            raise SecretUnavailable(str(before), before.reason, retry_after=before.retry_after)


class _Found:
    """What botocore calls a credential provider: one that has already found them."""

    METHOD = "assume-role"
    CANONICAL_NAME = None

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def load(self) -> Any:
        return self._credentials


def _resolved(name: str, value: str | None, environ: Mapping[str, str]) -> str | None:
    failure: SecretUnavailable
    try:
        return None if value is None else resolve_environ(value, environ)
    except ConfigError as error:
        failure = SecretUnavailable(f"secrets.providers.aws.{name}: {error}.", Reason.MISCONFIGURED)
    raise failure


def _imported(module: str) -> Any:
    """A module of botocore; Any because it says nothing of its types."""
    try:
        return importlib.import_module(module)
    except ImportError:
        pass
    message = "aws:// needs the AWS SDK: install litellm-orchestration[aws]."
    raise SecretUnavailable(message, Reason.MISCONFIGURED)
