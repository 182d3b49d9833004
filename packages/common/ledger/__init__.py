"""Durable outcomes: one row per unit and stage, as JSON lines that are sealed to Parquet."""
