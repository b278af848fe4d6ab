"""What a person looks at: the HTML report, its plots and its verdict, and the model card."""

from condistill.report.html import write_report
from condistill.report.verdict import gap_closed, verdict

__all__ = ["gap_closed", "verdict", "write_report"]
