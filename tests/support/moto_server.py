"""AWS on 127.0.0.1: moto's server, in a thread of this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import boto3
import httpx
from moto.server import ThreadedMotoServer

from tests.support.aws import ADMIN, REGION

_ADMIN = {name.lower(): value for name, value in ADMIN.items()}


class MotoServer:
    """`with MotoServer() as aws:` gives Secrets Manager, STS and IAM of an AWS that lives in this process.

    moto checks no permissions until `check_permissions` is called, and none after `reset`; then it looks at the action
    and takes every resource for "*". Its state belongs to the process: two servers at once share it.
    """

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    @property
    def url(self) -> str:
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    # Any: boto3 makes its clients' methods at run time.
    def client(self, service: str = "secretsmanager", region: str = REGION) -> Any:
        """A client with an administrator's rights, as long as permissions are not checked."""
        return boto3.client(service, region_name=region, endpoint_url=self.url, **_ADMIN)

    def user(self, name: str, *statements: Mapping[str, object]) -> dict[str, str]:
        """A new IAM user with this policy; the environment variables of its access key."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        if statements:
            document = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_user_policy(UserName=name, PolicyName="given", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def role(self, name: str, *statements: Mapping[str, object]) -> str:
        """A new IAM role with this policy that trusts everybody of the account; its ARN."""
        iam = self.client("iam")
        statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
        trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        if statements:
            document = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_role_policy(RoleName=name, PolicyName="given", PolicyDocument=document)
        return arn

    def check_permissions(self) -> None:
        """From now on every call needs a policy that allows it."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=b"0").raise_for_status()

    def reset(self) -> None:
        """Forget everything; permissions are not checked."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=b"inf").raise_for_status()
        httpx.post(f"{self.url}/moto-api/reset").raise_for_status()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> MotoServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
