"""Formats and plumbing: recipes, run folders, ledger, executors, media, shards, queries; imports no torch."""
