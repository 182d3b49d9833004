"""Downloads with rate limits, retries and several egress addresses."""
