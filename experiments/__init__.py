"""Studies, one a file; results/ holds their committed tables, LOG.md what was learned."""
