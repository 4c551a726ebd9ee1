"""Lines of CSV files that people open in a spreadsheet."""

import csv
import io

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a text that begins so


def csv_line(*cells: object) -> str:
    """One line. Texts are never computed; numbers stay numbers."""
    safe = [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells]
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(safe)
    return out.getvalue()
