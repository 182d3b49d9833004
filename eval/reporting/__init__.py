"""The report page, the card and the tables of the paper."""
