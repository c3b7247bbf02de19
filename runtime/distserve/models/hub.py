"""A Hugging Face hub, by huggingface_hub: what `fetch` asks of it, and its errors as ours.

The library's own `snapshot_download` begins a file anew after an interruption, so files are
appended to by its `http_get`, which asks for what is missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from distserve.models.errors import FetchFailed, FetchRefused
from distserve.models.fetch import FULL, RemoteFile, Snapshot

CALL_SECONDS = 30.0


class HuggingFaceHub:
    """`endpoint` and proxies are those of the environment (HF_ENDPOINT, HTTPS_PROXY)."""

    def __init__(self, token: str | None) -> None:
        self._api = HfApi(token=token or False)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def most_bytes(self) -> int:
        return constants.MAX_HTTP_DOWNLOAD_SIZE

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        with _explained(repository, revision):
            found = self._api.model_info(
                repository, revision=revision, files_metadata=True, timeout=CALL_SECONDS
            )
        return Snapshot(
            commit=str(found.sha),
            files=tuple(
                RemoteFile(
                    name=one.rfilename,
                    size_bytes=one.size or 0,
                    sha256=one.lfs.sha256 if one.lfs else None,
                    git_blob=one.blob_id or "",
                )
                for one in found.siblings or []
            ),
        )

    def download(self, repository: str, commit: str, file: RemoteFile, target: Path) -> None:
        url = hf_hub_url(repository, file.name, revision=commit)
        with _explained(repository, commit), target.open("ab") as growing:
            http_get(
                url,
                growing,
                resume_size=growing.tell(),
                headers=self._headers,
                expected_size=file.size_bytes,
                displayed_filename=file.name,
            )


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    where = f"{repository}@{revision}"
    try:
        yield
    except GatedRepoError as error:
        raise FetchRefused(
            f"{where} is gated: accept its terms on the hub, and name a token of that account "
            "(model.source.huggingFace.tokenSecretName)"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchRefused(f"{repository} has no revision {revision!r}: name another") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FetchRefused(
            f"there is no repository {repository!r}, or this token may not see it: check the name "
            "and model.source.huggingFace.tokenSecretName"
        ) from error
    except HfHubHTTPError as error:
        raise FetchFailed(f"{where}: the hub answered {error.response.status_code}") from error
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # the cache's, not the hub's
        raise FetchFailed(f"{where}: {error}") from error
