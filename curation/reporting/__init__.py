"""Report, summary and forecasts of a curation run."""
