"""Tables by name: `TABLES[name](context)` is a DataFrame, `.table(context)` the Table with its captions and formats."""

from analysis.tables import papers, spine  # noqa: F401  (they register their tables)
from analysis.tables.spec import TABLES, Column, Entry, Table, get, table

__all__ = ['TABLES', 'Column', 'Entry', 'Table', 'get', 'table']
