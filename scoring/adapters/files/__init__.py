"""Files of readings, CSV or newline-delimited JSON, as event batches of a hub of their own.

A line is an event, whatever stands in it: a quote that is never closed, a stray byte or a cell
too many makes one reject, and never touches the neighbours. So cells hold no line breaks.
"""

from scoring.adapters.files.readings_file import ReadingsFile
from scoring.adapters.files.rows import FileFormat
from scoring.adapters.files.source import Progress

__all__ = ["FileFormat", "Progress", "ReadingsFile"]
