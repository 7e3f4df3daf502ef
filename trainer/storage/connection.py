"""Connects to Google Cloud Storage.  The library is imported only when this is called."""

import os
from typing import Any

from trainer.errors import UsageError
from trainer.storage.address import Address


def connect(address: Address) -> tuple[Any, bool]:
    """Returns the library's client, and whether it has no credentials."""
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage
    except ImportError as error:
        raise UsageError(
            f"--{address.flag}={address} needs google-cloud-storage, which cannot be imported "
            f"({error}). Run pip install google-cloud-storage."
        ) from None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project=None), False
    try:
        credentials, _ = google.auth.default()
    except DefaultCredentialsError as error:
        if path := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise UsageError(
                f"GOOGLE_APPLICATION_CREDENTIALS={path} cannot be used ({error_reason(error)})."
            ) from None
        return storage.Client.create_anonymous_client(), True
    return storage.Client(project=None, credentials=credentials), False


def error_reason(error: BaseException) -> str:
    """Returns the first line of an error; for an error of the service, without the URL."""
    errors = getattr(error, "errors", None)
    if errors and isinstance(errors[0], dict) and errors[0].get("message"):
        return f"{getattr(error, 'code', '')} {errors[0]['message']}".splitlines()[0].strip()
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
