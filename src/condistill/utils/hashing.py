"""Hashes of settings and files: what a key is made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def key_of(*parts: Any) -> str:
    """Hash of settings and inputs: equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
