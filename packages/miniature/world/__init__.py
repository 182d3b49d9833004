"""The small world: drawn people, synthesised voices, planted faults and their truth."""
