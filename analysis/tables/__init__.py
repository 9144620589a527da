"""Tables by name: `TABLES[name](context)` is a DataFrame, `.table(context)` the Table with its captions and formats."""

from analysis.tables import spine  # noqa: F401  (registers its tables)
from analysis.tables.spec import TABLES, Column, Entry, Table, get, table

__all__ = ['TABLES', 'Column', 'Entry', 'Table', 'get', 'table']
