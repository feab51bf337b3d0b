"""What a search has found: record, ranking, summary, export."""
