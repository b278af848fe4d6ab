"""Frozen records, and JSON files that contain them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from condistill.errors import CondistillError, CorruptError
from condistill.utils.atomic import write_text

AnyRecordFile = TypeVar("AnyRecordFile", bound="RecordFile")


class Record(BaseModel):
    """A frozen record. Unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RecordFile(Record):
    """A record with a JSON file of its own. A subclass fixes the format number: `format: Literal[2] = 2`."""

    format: int

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all; fields that are None are left out."""
        content = self.model_dump(mode="json", exclude_none=True)
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def check_content(self) -> None:
        """Check what the types cannot.

        Raises:
            ValueError: the content is not what was written.
        """

    @classmethod
    def read(cls: type[AnyRecordFile], path: Path, *, remedy: str) -> AnyRecordFile:
        """Read a file that `write` has written.

        Args:
            remedy: the last part of error messages, such as "run `condistill report` again".

        Raises:
            CondistillError: the file does not exist or has another format.
            CorruptError: the file has the right format number but invalid content.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CondistillError(f"{path} does not exist; {remedy}") from None
        except UnicodeDecodeError as error:
            raise CorruptError(f"{path} is not UTF-8 text, so it is damaged; {remedy}") from error
        expected = cls.model_fields["format"].default
        try:
            found: Any = json.loads(text).get("format", 1)  # the first format had no number
        except (ValueError, AttributeError, RecursionError) as error:
            raise CorruptError(f"{path} is not a JSON object, so it is damaged; {remedy}") from error
        if found != expected:
            raise CondistillError(
                f"{path} has format {found}, and this version of condistill reads format {expected}; {remedy}"
            )
        try:
            record = cls.model_validate_json(text)
            record.check_content()
            return record
        except ValidationError as error:
            places = ", ".join(".".join(map(str, mistake["loc"])) for mistake in error.errors())
            raise CorruptError(f"{path} is damaged or was edited (see {places}); {remedy}") from error
        except ValueError as error:
            raise CorruptError(f"{path} is damaged or was edited ({error}); {remedy}") from error


class CheckedFile(RecordFile):
    """A record that has a checksum of itself in its file, so that every changed byte is noticed."""

    check: str = ""
    """Hash of all other fields; set when the file is written."""

    def write(self, path: Path) -> None:
        """Write the file with its checksum, completely or not at all."""
        super(CheckedFile, self.model_copy(update={"check": self._hash()})).write(path)

    def check_content(self) -> None:
        """Compare the content with the checksum."""
        if self.check != self._hash():
            raise ValueError("its content differs from its checksum")

    def _hash(self) -> str:
        content = self.model_dump(mode="json", exclude_none=True, exclude={"check"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
