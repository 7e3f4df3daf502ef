"""Converts the exceptions of google-cloud-storage into errors of one line for the user."""

import contextlib
from collections.abc import Iterator

from trainer.errors import StorageError, TrainerError, UsageError
from trainer.storage.address import Address
from trainer.storage.connection import error_reason

LIST, GET, CREATE, DELETE = (
    f"storage.objects.{action}" for action in ("list", "get", "create", "delete")
)


class ConflictError(StorageError):
    """An object does not have the expected generation, because another process wrote it."""


class MissingError(StorageError):
    """An object does not exist."""


class DamagedError(StorageError):
    """A transfer arrived damaged in each of TRIES attempts."""


class Errors:
    """The errors of one bucket.

    Attributes:
      anonymous: whether there are no credentials.
    """

    def __init__(self, address: Address) -> None:
        self._address, self.anonymous = address, False

    @contextlib.contextmanager
    def converted(self, permission: str, name: str) -> Iterator[None]:
        """Converts the library's exceptions inside the block into errors for the user.

        Args:
          permission: the IAM permission that the call needs.
          name: name of the object, or "" for the folder.
        """
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        faults = (api.GoogleAPIError, auth.GoogleAuthError, RequestException, HTTPError)
        try:
            yield
        except (*faults, ConnectionError) as fault:
            error: BaseException = fault
            while isinstance(error, api.RetryError) and error.cause is not None:
                error = error.cause
            raise self._converted(error, permission, name) from None

    def _converted(self, error: BaseException, permission: str, name: str) -> TrainerError:
        """Returns the error for the user, in one line, for an exception of the library."""
        where, flag = f"{self._address.bucket}", f"--{self._address.flag}={self._address}"
        code, reason = getattr(error, "code", None), error_reason(error)
        if code == 400 and "requester pays" in reason.lower():
            return UsageError(
                f"{flag}: the owner of bucket {where!r} bills its users (Requester Pays). Set the "
                "environment variable GOOGLE_CLOUD_QUOTA_PROJECT to the project to bill."
            )
        if code == 412:
            return ConflictError(f"{f'{self._address}/{name}'} was written by another process.")
        if code == 404 and name and "bucket does not exist" not in reason.lower():
            return MissingError(f"{f'{self._address}/{name}'} does not exist.")
        if code == 404:
            return UsageError(
                f"{flag}: bucket {where!r} does not exist. Create it or name another."
            )
        # Without credentials the library responds to a 401 by trying to refresh them, which fails.
        anonymous = self.anonymous or type(error).__name__ == "InvalidOperation"
        if anonymous and code in (401, 403, None) and not isinstance(error, OSError):
            return UsageError(
                f"{flag}: the permission {permission} on bucket {where!r} needs credentials, and "
                "none were found. Provide them with GOOGLE_APPLICATION_CREDENTIALS, gcloud auth "
                "application-default login, or Workload Identity."
            )
        if code == 401:
            return UsageError(f"{flag}: bucket {where!r} rejects the credentials ({reason}).")
        if code == 403:
            return UsageError(
                f"{flag}: the permission {permission} on bucket {where!r} is missing ({reason}). "
                f"Grant the role {_role(permission)} on the bucket."
            )
        from google.auth.exceptions import TransportError

        transient = isinstance(error.__cause__, TransportError)  # metadata server is unreachable
        if getattr(error, "retryable", True) is False and not transient:
            return UsageError(f"{flag}: the credentials cannot be used ({reason}).")
        return StorageError(f"{flag}: requests to bucket {where!r} fail ({reason}).")


def _role(permission: str) -> str:
    return "roles/storage.objectViewer" if permission in (LIST, GET) else "roles/storage.objectUser"
