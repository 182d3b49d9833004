"""From features to scores, intervals and paired tests."""
