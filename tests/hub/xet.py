"""A Xet store in a folder. hf_xet keeps one there if the Hub gives it an address that begins with `local://`."""

import hashlib
import shutil
import struct
from pathlib import Path

LIVES_UNTIL = 9_999_999_999


class XetStore:
    """The files that a client has written to a store.

    Attributes:
        url: the `casUrl` in the Hub's answers.
    """

    def __init__(self, folder):
        self.folder, self.url = Path(folder), f"local://{folder}"

    def connection(self):
        """What a client needs, as JSON and as headers: hf_xet reads the JSON, huggingface_hub the headers."""
        headers = {"X-Xet-Cas-Url": self.url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(LIVES_UNTIL)}
        return {"casUrl": self.url, "accessToken": "xet", "exp": LIVES_UNTIL}, headers

    def hashes(self):
        """sha256 -> Xet hash of each file, read from the shards of the uploads."""
        found = {}
        for shard in (self.folder / "xet" / "xorbs" / "shards").glob("*.mdb"):
            data, at = shard.read_bytes(), 48  # after the header
            while (file_hash := data[at : at + 32]) != b"\xff" * 32:
                flags, entries = struct.unpack("<II", data[at + 32 : at + 40])
                verified, has_sha256 = flags >> 31 & 1, flags >> 30 & 1
                at += 48 * (1 + entries * (1 + verified))
                if has_sha256:
                    found[_hex(data[at : at + 32])] = _hex(file_hash)
                    at += 48
        return found

    def read(self, sha256, size, folder):
        """A file's content, reassembled from the store.

        Raises:
            KeyError: the store has no such file.
        """
        import hf_xet

        # The client that wrote last still holds a lock on the store, so a copy is read.
        copy = shutil.copytree(self.folder, Path(folder) / "store")
        path = Path(folder) / sha256
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{copy}") as group:
            group.start_download_file(hf_xet.XetFileInfo(self.hashes()[sha256], size), str(path))
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        return content


def _hex(words):
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))
