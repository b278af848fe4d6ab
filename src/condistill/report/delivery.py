"""Where a student loads, and its exports, for its model card."""

from __future__ import annotations

from pathlib import Path

from condistill.errors import CondistillError
from condistill.export import EXPORTERS, Exporter, Source, loads_in
from condistill.export.record import EXPORT_NAME, ExportRecord
from condistill.export.write import default_directory
from condistill.pipelines.provenance import Delivery, ExportedFiles, Program


def delivery(source: Source) -> Delivery:
    """Return where a student loads: what the exporters' checks say, and the exports in its run."""
    programs = [Program(each.application, each.loads, each.reason, each.source) for each in loads_in(source.shape)]
    formats = [_format(source, exporter) for exporter in EXPORTERS.values() if not exporter.check(source.shape)]
    return Delivery(tuple(programs), tuple(formats))


def _format(source: Source, exporter: Exporter) -> ExportedFiles:
    folder = default_directory(source, exporter)
    record = _record(folder)
    return ExportedFiles(
        f"{exporter.title} (condistill export --to {exporter.name})",
        exporter.how_to_load(source.shape),
        folder.name if record else None,
        {name: file.bytes for name, file in record.files.items()} if record else None,
    )


def _record(folder: Path) -> ExportRecord | None:
    """Return the record of an export; None where there is none that can be read."""
    try:
        return ExportRecord.read(folder / EXPORT_NAME, remedy="export it again")
    except (CondistillError, OSError):
        return None
