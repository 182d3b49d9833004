"""Published weights: where they are, under which licence, fetching, checking and converting them."""
