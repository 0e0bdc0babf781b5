"""A study as files to hand on: its cards as one offline page, as Markdown or as pictures, and its front as CSV.

Nothing here computes figures, and no file is ever half written.
"""

from __future__ import annotations

from moopt.report.markdown import write_markdown
from moopt.report.page import write_cards, write_report
from moopt.report.pictures import write_picture, write_pictures
from moopt.report.tables import front_csv

__all__ = ["front_csv", "write_cards", "write_markdown", "write_picture", "write_pictures", "write_report"]
