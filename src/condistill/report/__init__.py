"""The results of a run for people: the HTML report with its plots and its verdict."""

from condistill.report.html import write_report
from condistill.report.inputs import ReportInputs
from condistill.report.verdict import gap_closed, verdict

__all__ = ["ReportInputs", "gap_closed", "verdict", "write_report"]
